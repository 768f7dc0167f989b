"""The log of a process: JSON lines of what is said and of what goes through logging, never more than so many bytes."""

import io
import json
import logging
import resource
import threading
import time

import jax
import pytest
from absl import logging as absl_logging
from rich.console import Console

from qwen3_jax import progress as progress_module
from qwen3_jax.observability import process_log
from qwen3_jax.preemption import Preempted
from qwen3_jax.progress import Progress
from qwen3_jax.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path / "run")


def _lines(workdir):
  text = process_log.path_in(workdir).read_text()
  refuse = lambda name: pytest.fail(f"{name} is not JSON")
  return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_line_has_time_process_stage_level_message_and_fields(workdir):
  process_log.note("before there is a log")
  with process_log.written(workdir):
    process_log.note("100% done", step=3, loss=float("nan"))
    with process_log.stage("s1"):
      absl_logging.warning("%s is %d", "checkpoint", 7)
      other = threading.Thread(target=logging.getLogger("some.library").error, args=("from a thread",))
      other.start()
      other.join()
    logging.getLogger("some.library").info("not asked for")
  process_log.note("after")
  first, second, third = _lines(workdir)
  assert abs(first.pop("time") - time.time()) < 60
  assert first == {
    "process": 0,
    "stage": None,
    "level": "INFO",
    "message": "100% done",
    "fields": {"step": 3, "loss": "NaN"},
  }
  assert (second["stage"], second["level"], second["message"]) == ("s1", "WARNING", "checkpoint is 7")
  assert (third["stage"], third["level"], third["fields"]["logger"]) == ("s1", "ERROR", "some.library")


def test_what_progress_says(workdir, monkeypatch):
  """Also what it does not show: other processes show nothing, a bar shows no lines."""
  monkeypatch.setattr(progress_module, "LONG_PHASE_SECONDS", 0.0)
  monkeypatch.setattr(jax, "process_index", lambda: 3)
  console = Console(file=io.StringIO())
  with process_log.written(workdir), Progress("s1", 4, line_seconds=0.0, console=console) as progress:
    progress.update(1, loss=2.5, tokens_per_second=1000.0, mfu=0.5)
    progress.say("hello")
    with progress.phase("saving"):
      time.sleep(0.01)
    monkeypatch.undo()  # the path below is that of process 3
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    lines = _lines(workdir)
  assert console.file.getvalue() == ""
  assert [line["process"] for line in lines] == [3, 3, 3]
  assert lines[0]["message"].startswith("step 1/4 (25%)  loss 2.5000  1k tokens/s  MFU 50.0%")
  assert lines[0]["fields"] == {"step": 1, "loss": 2.5, "tokens_per_second": 1000.0, "mfu": 0.5}
  assert (lines[1]["message"], lines[2]["fields"]["phase"]) == ("hello", "saving")
  assert process_log.path_in(workdir).name == "process-3.jsonl"


def test_how_a_run_ended(workdir):
  with pytest.raises(ZeroDivisionError), process_log.written(workdir):
    _ = 1 / 0
  with pytest.raises(Preempted), process_log.written(workdir):
    raise Preempted("stopped at step 3")
  error, notice = _lines(workdir)
  assert (error["level"], error["message"]) == ("ERROR", "ended by ZeroDivisionError")
  assert "_ = 1 / 0" in error["fields"]["traceback"]
  assert (notice["level"], notice["message"], notice["fields"]) == ("INFO", "stopped at step 3", {})


def test_a_killed_run_s_half_line_takes_no_other_with_it(workdir):
  path = process_log.path_in(workdir)
  path.parent.mkdir(parents=True)
  path.write_text('{"time": 1, "mess')
  for message in ("one", "two"):
    with process_log.written(workdir):
      process_log.note(message)
  half, *whole = path.read_text().splitlines()
  assert half == '{"time": 1, "mess'
  assert [json.loads(line)["message"] for line in whole] == ["one", "two"]


def test_it_stays_small_and_keeps_the_newest(workdir, monkeypatch):
  monkeypatch.setattr(process_log, "_FILE_BYTES", 2000)
  with process_log.written(workdir):
    for number in range(1000):
      process_log.note(f"message {number}")
  files = sorted(path for path in process_log.path_in(workdir).parent.iterdir())
  assert len(files) == 4
  assert all(path.stat().st_size <= 2000 for path in files)
  assert _lines(workdir)[-1]["message"] == "message 999"


def test_a_full_disk_ends_the_log_and_not_the_run(workdir, capsys):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with process_log.written(workdir):
    process_log.note("fits")
    resource.setrlimit(resource.RLIMIT_FSIZE, (process_log.path_in(workdir).stat().st_size + 5, hard))
    try:
      for _ in range(3):
        process_log.note("does not fit")
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  (warning,) = capsys.readouterr().err.splitlines()
  assert warning.startswith(f"warning: {process_log.path_in(workdir)}: ") and "File too large" in warning


def test_a_place_that_cannot_be_written(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  with process_log.written(Workdir(tmp_path / "file")):
    process_log.note("nowhere")
  assert "no log is written" in capsys.readouterr().err
