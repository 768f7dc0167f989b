"""Goodput over restarts: sums by hand, half lines, and a real run that is killed."""

import json
import math

import pytest

from qwen3_jax.observability.goodput import KINDS, goodput, summary
from qwen3_jax.observability.time_record import TimeRecord, path_in
from qwen3_jax.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path)


def _write(workdir, *lines):
  path_in(workdir).write_text("".join(json.dumps(line) + "\n" for line in lines))


def start(time):
  return {"time": time, "event": "start"}


def stage(time, name, step):
  return {"time": time, "event": "stage", "stage": name, "step": step}


def spent(time, steps=None, of="s1", **seconds):
  return {"time": time, "event": "spent", "seconds": seconds} | ({"stage": of, "steps": steps} if steps else {})


def end(time, finished=True):
  return {"time": time, "event": "end", "finished": finished}


KILLED = (
  start(100),
  spent(110, start=10),
  stage(110, "s1", 0),
  spent(115, [0, 0], compile=5),
  spent(125, [0, 3], host=2, device=7, input=1),
  spent(127, [3, 3], checkpoint=2),
  spent(133, [3, 5], host=1, device=4, input=1),
  spent(134, [5, 5], evaluation=1),
)


def test_a_run_that_nothing_disturbed(workdir):
  _write(workdir, *KILLED, end(135))
  found = goodput(workdir)
  expected = {"start": 10, "compile": 5, "steps": 14, "input": 2, "checkpoint": 2, "evaluation": 1}
  assert found.seconds == dict.fromkeys(KINDS, 0) | expected
  assert (found.total, found.productive, found.starts, found.lost_steps) == (34, 14, 1, 0)
  assert found.share == pytest.approx(14 / 34)


def test_work_after_the_checkpoint_is_lost_and_the_gap_is_down_time(workdir):
  _write(workdir, *KILLED, start(160), spent(164, start=4), stage(164, "s1", 3), spent(170, [3, 5], host=6), end(170))
  found = goodput(workdir)
  # Steps 4 and 5 and the evaluation: 1 + 4 + 1 + 1 seconds. Step 3's checkpoint and all before it stand.
  expected = {"start": 14, "compile": 5, "steps": 15, "input": 1, "checkpoint": 2, "lost": 7, "down": 160 - 134}
  assert found.seconds == dict.fromkeys(KINDS, 0) | expected
  assert (found.starts, found.lost_steps) == (2, 2)
  assert found.total == 170 - 100  # every second is somewhere


def test_what_was_lost_once_is_not_lost_again(workdir):
  again = [start(140), stage(140, "s1", 3), spent(142, [3, 4], host=2)]
  _write(workdir, *KILLED, *again, start(150), stage(150, "s1", 3))
  found = goodput(workdir)
  assert (found.seconds["lost"], found.lost_steps, found.seconds["steps"]) == (7 + 2, 2 + 1, 9)


def test_a_damaged_checkpoint_loses_a_part_of_a_line(workdir):
  _write(workdir, *KILLED, start(134), stage(134, "s1", 2))
  found = goodput(workdir)
  third = 10 / 3  # of the line with steps 1 to 3
  assert found.seconds["lost"] == pytest.approx(third + 2 + 6 + 1)
  assert found.lost_steps == 3
  assert found.total == pytest.approx(34)


def test_stages_and_models_lose_their_own(workdir):
  _write(
    workdir,
    *KILLED,
    stage(134, "s2", 0),
    spent(140, [0, 4], of="s2", rollouts=4, host=2),
    start(150),
    stage(150, "s2", 0),
  )
  found = goodput(workdir)
  assert (found.seconds["lost"], found.lost_steps, found.seconds["steps"], found.seconds["down"]) == (6, 4, 14, 10)


def test_rollouts_are_productive(workdir):
  _write(workdir, start(0), stage(0, "rl", 0), spent(10, [0, 4], of="rl", rollouts=6, host=2, checkpoint=2), end(10))
  assert goodput(workdir).share == pytest.approx(0.8)


@pytest.mark.parametrize(("finished", "down"), [(True, 0), (False, 1000)])
def test_time_after_a_finished_run_is_nobody_s(workdir, finished, down):
  _write(workdir, *KILLED, end(135, finished), start(1135), spent(1136, start=1))
  assert goodput(workdir).seconds["down"] == down


@pytest.mark.parametrize("half", ['{"time": 140, "event": "sp', '{"time": 140', "\x00\x00"])
def test_a_half_line_is_dropped_and_the_next_start_is_not(workdir, half):
  _write(workdir, *KILLED)
  with path_in(workdir).open("a") as file:
    file.write(half)
  assert goodput(workdir).total == 34
  with TimeRecord(workdir, started=1000.0):
    pass
  found = goodput(workdir)
  assert found.starts == 2
  assert found.seconds["down"] == 1000 - 134


def test_nothing_recorded(workdir):
  found = goodput(workdir)
  assert (found.total, found.starts) == (0, 0) and math.isnan(found.share)
  assert summary(found) == "goodput: nothing is recorded"


def test_in_a_line(workdir):
  _write(workdir, *KILLED, start(160), stage(160, "s1", 3), spent(260, [3, 5], host=100), end(260))
  line = summary(goodput(workdir))
  assert line == "goodput 68% of 2m 40s; down time 26s, start 10s, lost work 7.0s, compile 5.0s, checkpoint 2.0s"
