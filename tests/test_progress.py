"""Progress: a bar on a terminal, lines elsewhere, a word when nothing moves."""

import io
import os
import pty
import re
import threading
import time

import pytest
from clock import Clock
from rich.console import Console

from qwen3_jax import progress as progress_module
from qwen3_jax.progress import Progress


@pytest.fixture
def pipe() -> Console:
  return Console(file=io.StringIO(), soft_wrap=True, highlight=False)


def _lines(console: Console) -> list[str]:
  return console.file.getvalue().splitlines()


def _stalls(console: Console) -> list[str]:
  return [line for line in _lines(console) if "no step has finished" in line]


def test_plain_lines_without_a_terminal(capsys):
  with Progress("s1", 4, line_seconds=0.0) as progress:
    for step in range(1, 5):
      progress.update(step, loss=5.0 - step, tokens_per_second=12_345.0, mfu=0.425)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4
  assert lines[0].startswith("[s1] step 1/4 (25%)  loss 4.0000  12.3k tokens/s  MFU 42.5%")
  assert lines[-1].startswith("[s1] step 4/4 (100%)  loss 1.0000")
  assert "\x1b" not in "".join(lines)


def test_lines_are_rare_but_the_last_step_always_has_one(pipe):
  with Progress("s1", 1000, line_seconds=60.0, console=pipe) as progress:
    for step in range(1, 1001):
      progress.update(step, loss=1.0)
  assert [re.search(r"step (\d+)", line)[1] for line in _lines(pipe)] == ["1", "1000"]


def test_unknown_figures_are_not_shown(pipe):
  with Progress("s1", 2, line_seconds=0.0, console=pipe) as progress:
    progress.update(1, loss=float("nan"), mfu=float("nan"))
  assert "loss nan" in _lines(pipe)[0]
  assert "MFU" not in _lines(pipe)[0]


def test_time_left_follows_the_speed_of_this_run(pipe, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress_module, "time", clock)
  progress = Progress("s1", 1000, 400, line_seconds=0.0, console=pipe)  # not entered: no thread reads the clock
  for step in range(401, 501):
    clock.sleep(2.0)
    progress.update(step, loss=1.0)
  assert _lines(pipe)[-1].endswith("16m 40s left")  # 500 steps of 2 s


def test_time_left_of_the_whole_run(pipe, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress_module, "time", clock)
  progress = Progress("s1", 1000, 400, line_seconds=0.0, later=3.0, console=pipe)
  for step in range(401, 501):
    clock.sleep(2.0)
    progress.update(step, loss=1.0)
  # 500 steps of 2 s, and what follows costs three times the 1000 steps of this stage.
  assert _lines(pipe)[-1].endswith("16m 40s left, about 1h 56m in all")


def test_a_bar_on_a_terminal(monkeypatch):
  for variable in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setenv("TERM", "xterm-256color")
  master, slave = pty.openpty()
  shown = bytearray()
  reader = threading.Thread(target=_read_all, args=(master, shown))
  reader.start()
  with os.fdopen(slave, "w") as terminal:
    console = Console(file=terminal, width=100)
    with Progress("s1", 200, console=console) as progress:
      for step in range(1, 201):
        progress.update(step, loss=2.5, tokens_per_second=1000.0)
        if step == 100:
          time.sleep(0.4)  # long enough to be drawn
  reader.join(timeout=10)
  os.close(master)
  text = shown.decode()
  assert "\x1b[2K" in text  # redrawn in place
  assert "━" in text
  assert "100/200" in text
  assert "200/200" in text
  assert "loss 2.5000  1k tokens/s" in text
  assert "step " not in text  # no lines beside the bar


def _read_all(descriptor: int, into: bytearray) -> None:
  try:
    while data := os.read(descriptor, 4096):
      into += data
  except OSError:  # the other end is closed
    pass


def test_a_stall_gets_a_line_and_again_after_every_period(pipe):
  with Progress("s1", 9, stall_seconds=0.2, line_seconds=60.0, console=pipe) as progress:
    progress.update(5, loss=1.0)
    started = time.monotonic()
    while len(stalls := _stalls(pipe)) < 2 and time.monotonic() < started + 60:
      time.sleep(0.05)
  assert 2 <= len(stalls) <= (time.monotonic() - started) / 0.2
  assert re.fullmatch(r"\[s1\] no step has finished for \d\.\ds; the last was step 5 of 9", stalls[0])


def test_steps_that_finish_are_no_stall(pipe):
  with Progress("s1", 100, stall_seconds=1.0, line_seconds=60.0, console=pipe) as progress:
    for step in range(1, 27):
      progress.update(step)
      time.sleep(0.05)
  assert _lines(pipe) == []


def test_a_phase_is_named_instead_of_called_a_stall(pipe, monkeypatch):
  monkeypatch.setattr(progress_module, "LONG_PHASE_SECONDS", 0.1)
  with Progress("s1", 9, stall_seconds=0.6, line_seconds=60.0, console=pipe) as progress:
    with progress.phase("compiling"):
      time.sleep(1.0)
    time.sleep(0.1)  # the stall is counted from the end of the phase
  lines = _lines(pipe)
  assert lines[0] == "[s1] compiling ..."
  assert re.fullmatch(r"\[s1\] still compiling after \d\.\ds", lines[1])
  assert re.fullmatch(r"\[s1\] compiling took \d\.\ds", lines[-1])
  assert not any("no step" in line for line in lines)


def test_a_short_phase_is_quiet(pipe):
  with Progress("s1", 9, console=pipe) as progress, progress.phase("evaluating"):
    pass
  assert _lines(pipe) == []


def test_the_watchdog_ends_with_the_stage(pipe):
  with pytest.raises(KeyError), Progress("s1", 9, stall_seconds=0.1, console=pipe):
    assert _watchdogs() == 1
    raise KeyError
  assert _watchdogs() == 0
  time.sleep(0.3)
  assert _lines(pipe) == []


def _watchdogs() -> int:
  return sum(thread.name == "progress of s1" for thread in threading.enumerate())
