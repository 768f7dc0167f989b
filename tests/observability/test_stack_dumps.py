"""Stacks of all threads: in the file, under a header, on a stall, on a signal, before an abort."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from qwen3_jax.observability import stack_dumps
from qwen3_jax.progress import STALLED_EXIT_STATUS, Progress
from qwen3_jax.workdir import Workdir

ROOT = Path(__file__).parents[2]
HANGS = """
import sys, time
import qwen3_jax.train_loop
from qwen3_jax.progress import Progress
from qwen3_jax.observability import process_log
from qwen3_jax.workdir import Workdir

assert not {"wandb", "mlflow"} & set(sys.modules)  # imported only when they are asked for

def where_it_hangs():
  time.sleep(60)

workdir = Workdir(sys.argv[1])
with process_log.written(workdir), process_log.stage("s1"):
  with Progress("s1", 9, 4, stall_seconds=0.2, abort_after_seconds=0.6, workdir=workdir) as progress:
    with progress.phase("saving"):
      where_it_hangs()
"""


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path / "run")


@pytest.fixture
def waiting_thread():
  """A thread that waits in a function of its own until the test is over."""
  over = threading.Event()

  def waits_for_the_test():
    over.wait()

  thread = threading.Thread(target=waits_for_the_test, name="the one that waits")
  thread.start()
  yield thread
  over.set()
  thread.join()


def test_every_thread_is_there_with_its_name(workdir, waiting_thread):
  path = stack_dumps.dump(workdir, "because of a test")
  assert path == workdir.path / "logs" / "stacks-0.txt"
  header, names, *stacks = path.read_text().splitlines()
  assert re.fullmatch(rf"=== \S+, process {os.getpid()}: because of a test", header)
  identity = re.search(r"(0x\w+) the one that waits", names)[1]
  text = "\n".join(stacks)
  own = re.search(rf"Thread {identity} \(most recent call first\):\n((?:  .*\n)+)", text)[1]
  assert "waits_for_the_test" in own
  assert "test_every_thread_is_there_with_its_name" in text.replace(own, "")


def test_sigusr1_writes_them_and_the_process_goes_on(workdir, waiting_thread):
  before = signal.getsignal(signal.SIGUSR1)
  with stack_dumps.on_signal(workdir):
    os.kill(os.getpid(), signal.SIGUSR1)
    text = stack_dumps.path_in(workdir).read_text()
  assert "test_sigusr1_writes_them_and_the_process_goes_on" in text and "waits_for_the_test" in text
  assert signal.getsignal(signal.SIGUSR1) == before


def test_a_long_file_is_set_aside_at_the_next_start(workdir, monkeypatch):
  path = stack_dumps.dump(workdir, "first")
  monkeypatch.setattr(stack_dumps, "_MOST_BYTES", 10)
  with stack_dumps.on_signal(workdir):
    assert path.read_text() == ""
  assert "first" in path.with_name("stacks-0.old.txt").read_text()


def test_a_place_that_cannot_be_written(tmp_path, caplog):
  (tmp_path / "file").write_text("")
  workdir = Workdir(tmp_path / "file")
  assert stack_dumps.dump(workdir, "why") is None
  with stack_dumps.on_signal(workdir):
    pass
  assert "the stacks are not written" in caplog.text and "SIGUSR1 is not answered" in caplog.text


def test_once_in_a_stall_and_named_where_it_is_told(workdir):
  console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
  with Progress("s1", 9, stall_seconds=0.2, line_seconds=60.0, workdir=workdir, console=console) as progress:
    time.sleep(0.75)
    progress.update(1)
    time.sleep(0.4)
  lines = [line for line in console.file.getvalue().splitlines() if "no step has finished" in line]
  first, *others = [line for line in lines if "was step 0 of" in line]
  path = stack_dumps.path_in(workdir)
  assert first.endswith(f"the last was step 0 of 9; stacks of all threads: {path}")
  assert others and not any("stacks" in line for line in others)
  assert [line.endswith(f"{path}") for line in lines if "was step 1 of" in line][:1] == [True]
  assert path.read_text().count("=== ") == 2
  assert path.read_text().count("no step has finished") == 2


def test_abort_of_a_run_that_hangs(tmp_path):
  """Also within something that may take long: nothing may take as long as the user said."""
  started = time.monotonic()
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", HANGS, str(tmp_path)]
  ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
  assert ended.returncode == STALLED_EXIT_STATUS == 75, ended.stderr
  assert time.monotonic() - started < 55
  stacks = tmp_path / "logs" / "stacks-0.txt"
  assert re.search(
    r"^error: \[s1\] nothing has finished for \d\.\ds, still saving \(abort_after_seconds=0\.6\);"
    rf" stacks of all threads: {re.escape(str(stacks))}\. The same command continues from the last checkpoint\.$",
    ended.stderr,
    re.M,
  ), ended.stderr
  assert "where_it_hangs" in stacks.read_text()
  assert '"level": "ERROR", "message": "[s1] nothing has finished' in (tmp_path / "logs/process-0.jsonl").read_text()
