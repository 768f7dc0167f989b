"""The time record: every second is of one kind, lines are few, and nothing that goes wrong with it ends a run."""

import json
import resource

import jax
import pytest
from clock import Clock

from qwen3_jax.observability import time_record
from qwen3_jax.observability.step_times import StepTimes
from qwen3_jax.observability.time_record import TimeRecord
from qwen3_jax.workdir import Workdir


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(time_record, "time", clock)
  return clock


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path / "run")


def _lines(workdir, event):
  lines = [json.loads(line) for line in time_record.path_in(workdir).read_text().splitlines()]
  return [line for line in lines if line["event"] == event]


def test_what_is_spent_within_is_not_spent_without(workdir, clock):
  with TimeRecord(workdir, started=clock.time() - 3) as record:
    clock.sleep(4)
    with record.spend("host"):
      clock.sleep(1)
      with record.spend("checkpoint"):
        clock.sleep(10)
        with record.spend("rollouts"):
          clock.sleep(100)
        clock.sleep(10)
      with pytest.raises(KeyError), record.spend("device"):
        clock.sleep(1000)
        raise KeyError
      clock.sleep(1)
    clock.sleep(2)
    spent = {kind: record.seconds(kind) for kind in time_record.KINDS}
  expected = {"start": 9, "host": 2, "checkpoint": 20, "rollouts": 100, "device": 1000}
  assert spent == dict.fromkeys(time_record.KINDS, 0) | expected
  written: dict = {}
  for line in _lines(workdir, "spent"):
    for kind, seconds in line["seconds"].items():
      written[kind] = written.get(kind, 0) + seconds
  assert written == expected


def test_a_line_when_something_rare_begins_or_ends_and_else_few(workdir, clock):
  with TimeRecord(workdir) as record, record.stage("s1", 7), record.spend("host"):
    for step in range(8, 10_008):
      with record.spend("device"):
        clock.sleep(0.1)
      record.step_done(step)
    steady = len(_lines(workdir, "spent"))
    with record.spend("checkpoint"):
      assert _lines(workdir, "spent")[-1]["steps"][1] == 10_007  # a kill while saving loses no step before it
      clock.sleep(3)
    saved = _lines(workdir, "spent")[-1]
  assert 500 < steady < 2000  # of 20,000 changes in 1000 s
  assert (saved["steps"], saved["seconds"]) == ([10_007, 10_007], {"checkpoint": 3.0})
  parts = [line["steps"] for line in _lines(workdir, "spent") if "steps" in line]
  assert parts[0][0] == 7 and [last for _, last in parts[:-1]] == [first for first, _ in parts[1:]]


def test_only_the_first_process_writes(workdir, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with TimeRecord(workdir) as record, record.spend("host"):
    pass
  assert not time_record.path_in(workdir).exists()


def test_a_full_disk_ends_the_record_and_not_the_run(workdir, clock, caplog):
  record = TimeRecord(workdir)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (time_record.path_in(workdir).stat().st_size, hard))
  try:
    with record, record.stage("s1", 0):
      for _ in range(3):
        with record.spend("compile"):
          clock.sleep(1)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert record.seconds("compile") == 3
  warnings = [each.getMessage() for each in caplog.records]
  assert len(warnings) == 1 and f"{time_record.path_in(workdir)}: File too large" in warnings[0]


def test_parts_of_a_step_add_up_over_all_steps_that_were_done(workdir, clock):
  record = TimeRecord(workdir)
  with record.spend("host"):
    times = StepTimes(record, 4)
    for _ in range(3):
      clock.sleep(0.25)
      with record.spend("input"):
        clock.sleep(0.5)
      with record.spend("rollouts"):
        clock.sleep(2)
      with record.spend("device"):
        clock.sleep(1)
      with record.spend("evaluation"):
        clock.sleep(50)
    times.look(7)
    assert (times.data_wait, times.host, times.device, times.seconds) == (2.5, 0.25, 1.0, 3.75)
    clock.sleep(6)
    times.look(7)  # no step since
    assert times.seconds == 3.75
    times.look(9)
    assert (times.data_wait, times.host, times.device, times.seconds) == (0.0, 3.0, 0.0, 3.0)
