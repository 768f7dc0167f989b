"""What a real run of two processes leaves behind of itself. That of killed runs: tests/test_main.py."""

import re
import time

import jax
import pytest
import run_helpers

from qwen3_jax.observability.goodput import goodput
from qwen3_jax.workdir import Workdir, read_json_lines

OPTIONS = {
  "stages__s1__tokens": 6 * run_helpers.TOKENS_PER_STEP,
  "stages__s1__evaluate_every": 100,
  "stages__s3__batch_size": 4,  # can be divided over two devices
  "checkpoint__every": 100,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Work directory, seconds that it took, what was printed."""
  material = run_helpers.make_material(tmp_path_factory.mktemp("material"))
  workdir = Workdir(tmp_path_factory.mktemp("run") / "run")
  command = [*material.command("dense_0_6b:stage=s1", workdir.path, **OPTIONS), "--profile_steps=4,5"]
  started = time.time()
  ended = run_helpers.finish(material.process(run_helpers.several(2, command))).check()
  return workdir, time.time() - started, ended.out


def test_goodput(run):
  workdir, seconds, out = run
  found = goodput(workdir)
  assert (found.starts, found.lost_steps, found.seconds["down"]) == (1, 0, 0)
  assert 0 < found.productive < found.total < seconds
  assert found.total > 0.5 * seconds  # the rest is Python's start and end, and the launcher's
  for kind in ("start", "compile", "checkpoint", "evaluation", "steps"):
    assert found.seconds[kind] > 0, kind
  goodput_line, last = [line for line in out.splitlines() if line.startswith("[0] ")][-2:]
  shown = re.match(r"\[0\] goodput (\d+)% of .*compile", goodput_line)
  assert shown is not None and abs(int(shown[1]) - 100 * found.share) < 1, goodput_line
  assert "done with s1. Report:" in last


def test_every_process_has_its_trace_where_tensorboard_looks(run):
  workdir, _, out = run
  traces = sorted((workdir.tensorboard("s1") / "plugins" / "profile" / "steps-4-5").iterdir())
  assert [path.name.rpartition("-")[2] for path in traces] == ["0.xplane.pb", "1.xplane.pb"]
  for path in traces:
    data = jax.profiler.ProfileData.from_file(str(path))
    names = [event.name for plane in data.planes for line in plane.lines for event in line.events]
    assert names.count("train") == 2
    assert any("dot" in name or "fusion" in name for name in names)  # what XLA ran
  assert sum("profile of steps 4 to 5" in line for line in out.splitlines()) == 1


def test_every_process_has_its_log(run):
  workdir, _, _ = run
  for process in (0, 1):
    lines = list(read_json_lines(workdir.path / "logs" / f"process-{process}.jsonl"))
    assert {line["process"] for line in lines} == {process}
    steps = [line for line in lines if line["message"].startswith("step ")]
    assert {line["stage"] for line in steps} == {"s1"} and steps[-1]["fields"]["step"] == 6
    assert (workdir.path / "logs" / f"stacks-{process}.txt").exists()
