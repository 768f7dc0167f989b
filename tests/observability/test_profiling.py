"""Profiler traces: which steps are in them, and where they lie."""

import socket

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.observability.profiling import Profiler, parse_steps

HOST = socket.gethostname()


def _train(profiler, folder, first=1, last=6):
  """Steps as the train loop makes them; what was said."""
  said = []
  step_function = jax.jit(lambda x: jnp.tanh(x @ x))
  x = jnp.ones((64, 64))
  with profiler.stage(folder, said.append):
    for step in range(first, last + 1):
      profiler.before(step, x)
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        x = step_function(x)
      profiler.after(step, x)
  return said


def _traced_steps(path):
  """Numbers of the steps that a trace holds, read by JAX's own reader."""
  data = jax.profiler.ProfileData.from_file(str(path))
  events = [event for plane in data.planes for line in plane.lines for event in line.events if event.name == "train"]
  return sorted(int(dict(event.stats)["step_num"]) for event in events)


@pytest.mark.parametrize(
  ("window", "begins", "traced"),
  [
    ((3, 4), 1, [3, 4]),
    ((6, 6), 1, [6]),
    ((5, 9), 1, [5, 6]),  # the stage ends first
    ((2, 5), 4, [4, 5]),  # resumed within the window
  ],
)
def test_asked_for_steps_and_no_others(tmp_path, window, begins, traced):
  said = _train(Profiler(window), tmp_path, first=begins)
  run = tmp_path / "plugins" / "profile" / f"steps-{traced[0]}-{traced[-1]}"
  assert [path.name for path in run.iterdir()] == [f"{HOST}-0.xplane.pb"]
  assert _traced_steps(run / f"{HOST}-0.xplane.pb") == traced
  assert said == [f"profile of steps {traced[0]} to {traced[-1]}: {run}"]
  assert [path.name for path in tmp_path.iterdir()] == ["plugins"]


@pytest.mark.parametrize(("window", "begins"), [(None, 1), ((7, 9), 1), ((1, 2), 3)])
def test_steps_that_do_not_come_leave_nothing(tmp_path, window, begins):
  assert _train(Profiler(window), tmp_path / "stage", first=begins) == []
  assert not (tmp_path / "stage").exists()


def test_one_stage_is_traced(tmp_path):
  profiler = Profiler((5, 6))
  for stage, last in (("short", 3), ("first", 6), ("second", 6)):
    _train(profiler, tmp_path / stage, last=last)
  assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_stage_that_fails_leaves_its_trace(tmp_path):
  profiler = Profiler((1, 9))
  with pytest.raises(KeyError), profiler.stage(tmp_path, print):
    profiler.before(1, jnp.ones(1))
    profiler.after(1, jnp.ones(1))
    raise KeyError
  assert list(tmp_path.glob("plugins/profile/steps-1-1/*.xplane.pb"))


def test_processes_of_one_host_write_files_of_their_own(tmp_path, monkeypatch):
  for process in (0, 1):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    _train(Profiler((2, 3)), tmp_path)
  files = sorted(path.name for path in (tmp_path / "plugins/profile/steps-2-3").iterdir())
  assert files == [f"{HOST}-0.xplane.pb", f"{HOST}-1.xplane.pb"]


def test_another_trace_under_way(tmp_path, caplog):
  with jax.profiler.trace(str(tmp_path / "other")):
    assert _train(Profiler((2, 3)), tmp_path / "stage") == []
  assert "profile_steps: Profile has already been started" in caplog.text


def test_a_place_that_cannot_be_written(tmp_path, caplog):
  (tmp_path / "plugins").write_text("")
  assert _train(Profiler((2, 3)), tmp_path) == []
  assert "the trace is not written" in caplog.text


@pytest.mark.parametrize("text", ["10", "20,10", "0,3", "a,b", "1,2,3", "-1,2", "1.5,2"])
def test_steps_that_are_none(text):
  with pytest.raises(ValueError, match=r"expected FIRST,LAST with 1 <= FIRST <= LAST, e\.g\. 10,20"):
    parse_steps(text)


def test_steps():
  assert (parse_steps("10,20"), parse_steps("7,7")) == ((10, 20), (7, 7))
