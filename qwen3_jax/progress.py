"""How a stage goes, for people: a bar on a terminal, plain lines elsewhere, and a line when nothing moves."""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import threading
import time
import types
from collections.abc import Iterator
from logging import ERROR, INFO, WARNING
from typing import Any

import jax
import rich.progress
from rich.console import Console

from qwen3_jax.number_text import compact, duration
from qwen3_jax.observability import process_log, stack_dumps
from qwen3_jax.workdir import Workdir

LONG_PHASE_SECONDS = 2.0  # a phase that takes longer gets a line of its own
STALLED_EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: another attempt may succeed


class Progress:
  """Shows the progress of one stage; use it as a context manager.

  The first process shows the bar or, every `line_seconds`, a line; every process says when it has stalled, and has all
  lines in its log (process_log.py). Drawing and watching happen in threads of their own: `update` only notes down what
  it is given.

  Args:
    stage: name of the stage.
    total_steps: steps of the whole stage.
    start_step: steps done before this run.
    stall_seconds: say so when no step has finished for so long, and again after every such period.
    abort_after_seconds: end the process with STALLED_EXIT_STATUS when neither a step nor a phase has ended for so
      long; 0 never does.
    later: cost of the stages that follow, in units of this one's; 0 for none.
    workdir: gets the stacks of all threads, once a stall; None writes none.
    line_seconds: time between lines when there is no terminal.
    console: where to; standard output unless given.
  """

  def __init__(
    self,
    stage: str,
    total_steps: int,
    start_step: int = 0,
    *,
    stall_seconds: float = 120.0,
    abort_after_seconds: float = 0.0,
    later: float = 0.0,
    workdir: Workdir | None = None,
    line_seconds: float = 10.0,
    console: Console | None = None,
  ):
    self._stage, self._total, self._step = stage, total_steps, start_step
    self._stall_seconds, self._line_seconds = stall_seconds, line_seconds
    self._abort_after_seconds, self._workdir = abort_after_seconds, workdir
    self._later = later
    self._console = console or Console(soft_wrap=True, highlight=False)
    self._shown = ""  # the newest loss, speed and MFU
    self._phase: str | None = None
    self._phase_started = 0.0
    self._moved = time.monotonic()  # when a step or a phase last ended
    self._last_line = float("-inf")
    # Times of recent steps: the estimate follows the present speed and leaves out compilation.
    self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=200)
    self._stopped = threading.Event()
    self._bar: rich.progress.Progress | None = None
    self._is_first = jax.process_index() == 0
    self._name = stage if jax.process_count() == 1 else f"{stage}, process {jax.process_index()}"

  def __enter__(self) -> Progress:
    if self._is_first and self._console.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn("[bold]{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        rich.progress.TextColumn("{task.fields[shown]}", markup=False),
        console=self._console,
        refresh_per_second=4,
      )
      self._task = self._bar.add_task(self._stage, total=self._total, completed=self._step, shown="")
      self._bar.start()
    self._moved = time.monotonic()
    self._watchdog = threading.Thread(target=self._watch, name=f"progress of {self._stage}", daemon=True)
    self._watchdog.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
  ) -> None:
    self._stopped.set()
    self._watchdog.join()
    if self._bar is not None:
      self._bar.stop()

  def update(
    self,
    step: int,
    loss: float | None = None,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
  ) -> None:
    """Notes that `step` has finished; with numbers when it was one that is logged."""
    now = time.monotonic()
    self._step, self._moved = step, now
    self._recent.append((now, step))
    if loss is not None:
      parts = [f"loss {loss:.4f}"]
      if tokens_per_second is not None:
        parts.append(f"{compact(tokens_per_second)} tokens/s")
      if mfu is not None and mfu == mfu:
        parts.append(f"MFU {mfu:.1%}")
      self._shown = "  ".join(parts)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, shown="  ".join(filter(None, (self._shown, self._eta(now)))))
    if loss is not None and (now - self._last_line >= self._line_seconds or step >= self._total):
      self._last_line = now
      share = f"{step / max(self._total, 1):.0%}"
      line = "  ".join(filter(None, (f"step {step}/{self._total} ({share})", self._shown, self._eta(now))))
      fields: dict[str, Any] = {"step": step, "loss": loss, "tokens_per_second": tokens_per_second, "mfu": mfu}
      self._print(line, shown=self._is_first and self._bar is None, **fields)

  def say(self, text: str) -> None:
    """A line of its own."""
    self._print(text, shown=self._is_first)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Announces a long operation between steps, e.g. "compiling"; the time it takes is not a stall."""
    started = time.monotonic()
    self._phase_started, self._phase = started, name
    if self._bar is not None:
      self._bar.update(self._task, description=f"{self._stage} · {name}")
    try:
      yield
    finally:
      self._phase = None
      self._moved = time.monotonic()
      self._recent.clear()
      if self._bar is not None:
        self._bar.update(self._task, description=self._stage)
      seconds = self._moved - started
      if seconds > LONG_PHASE_SECONDS:
        self._print(f"{name} took {duration(seconds)}", shown=self._is_first, phase=name, seconds=seconds)

  def _watch(self) -> None:
    """Names a phase that takes long, says when steps have stopped, and repeats either every `stall_seconds`."""
    said_at = self._moved
    while not self._stopped.wait(min(0.5, self._stall_seconds / 4)):
      now = time.monotonic()
      phase, started = self._phase, self._phase_started
      if 0 < self._abort_after_seconds < now - self._moved:
        self._abort(now - self._moved, phase)
      if phase is None:
        if now - max(self._moved, said_at) > self._stall_seconds:
          self._say_stalled(now - self._moved, first=said_at <= self._moved)
          said_at = now
      elif now - max(started, said_at) > (self._stall_seconds if said_at > started else LONG_PHASE_SECONDS):
        shown = self._is_first and (self._bar is None or said_at > started)  # the bar names the phase itself
        line = f"{phase} ..." if said_at <= started else f"still {phase} after {duration(now - started)}"
        self._print(line, shown=shown, phase=phase, seconds=now - started)
        said_at = now

  def _say_stalled(self, seconds: float, *, first: bool) -> None:
    """With the stacks the first time that it is said of a stall."""
    line = f"no step has finished for {duration(seconds)}; the last was step {self._step} of {self._total}"
    if first:
      line += self._dump_stacks(line)
    self._print(line, level=WARNING, step=self._step, seconds=seconds)

  def _abort(self, seconds: float, phase: str | None) -> None:
    """Nothing is closed in order: whatever hangs would be waited for."""
    what = f"still {phase}" if phase else f"the last was step {self._step} of {self._total}"
    line = (
      f"[{self._name}] nothing has finished for {duration(seconds)}, {what}"
      f" (abort_after_seconds={self._abort_after_seconds:g})"
    )
    line += self._dump_stacks(line)
    process_log.note(line, ERROR, step=self._step, seconds=seconds)
    print(f"error: {line}. The same command continues from the last checkpoint.", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(STALLED_EXIT_STATUS)

  def _dump_stacks(self, why: str) -> str:
    """What to add to a line about where the stacks are."""
    path = stack_dumps.dump(self._workdir, why) if self._workdir is not None else None
    return f"; stacks of all threads: {path}" if path else ""

  def _eta(self, now: float) -> str:
    if not self._recent or now <= self._recent[0][0] or self._step >= self._total:
      return ""
    then, step = self._recent[0]
    if self._step == step:
      return ""
    pace = (now - then) / (self._step - step)
    left = (self._total - self._step) * pace
    of_run = f", about {duration(left + self._later * self._total * pace)} in all" if self._later else ""
    return f"{duration(left)} left{of_run}"

  def _print(self, text: str, *, shown: bool = True, level: int = INFO, **fields: Any) -> None:
    """To the log, and to the console where it is to be shown."""
    process_log.note(text, level, **fields)
    if shown:
      self._console.print(f"[{self._name}] {text}", markup=False)
