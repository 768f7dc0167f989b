"""Progress of a stage: a bar on a terminal, plain lines elsewhere, and a word when nothing moves."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 10.0  # between plain lines


class Progress:
  """Context manager; `update` once a step. Process 0 shows it, the others are silent."""

  def __init__(self, stage: str, total_steps: int, start_step: int, *, stall_seconds: float = 120.0):
    self._stage, self._total, self._step, self._start = stage, total_steps, start_step, start_step
    self._stall_seconds = stall_seconds
    self._shown = jax.process_index() == 0
    self._console = Console(stderr=False, soft_wrap=True, highlight=False)
    self._facts = ""
    self._began = self._moved = time.monotonic()
    self._line_at = -math.inf
    self._phase: str | None = None
    self._stop = threading.Event()
    self._bar: Bar | None = None

  def __enter__(self) -> Progress:
    if self._shown and self._console.is_terminal:
      self._bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=self._console,
      )
      self._bar.start()
      self._task = self._bar.add_task(self._stage, total=self._total, completed=self._step, facts="")
    elif self._shown and self._step < self._total:
      self.say(f"step {self._step}/{self._total}")
    self._watchdog = threading.Thread(target=self._watch, daemon=True, name="progress watchdog")
    self._watchdog.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._stop.set()
    self._watchdog.join()
    if self._bar is not None:
      self._bar.stop()

  def say(self, text: str) -> None:
    """A line of its own, above the bar."""
    if self._shown:
      self._console.print(f"{self._stage}: {text}", markup=False)
      sys.stdout.flush()

  def update(
    self, step: int, *, loss: float | None = None, tokens_per_second: float | None = None, mfu: float | None = None
  ) -> None:
    """`step` has finished; figures when there are new ones."""
    self._step, self._moved = step, time.monotonic()
    if loss is not None:
      self._facts = f"loss {loss:.4f}"
      if tokens_per_second is not None:
        self._facts += f"  {tokens_per_second:,.0f} tokens/s"
      if mfu is not None and math.isfinite(mfu):
        self._facts += f"  MFU {mfu:.1%}"
    if self._bar is not None:
      self._bar.update(self._task, completed=step, facts=self._facts)
    elif self._moved - self._line_at >= LINE_SECONDS or step == self._total:
      self._line_at = self._moved
      self.say(f"step {step}/{self._total}  {self._facts}  {self._eta()}")

  def _eta(self) -> str:
    done = self._step - self._start
    seconds = (time.monotonic() - self._began) / max(done, 1) * (self._total - self._step)
    return "done" if self._step >= self._total else f"ETA {int(seconds // 60)}:{int(seconds % 60):02d}"

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Something other than steps is under way; the watchdog names it instead of calling it a stall."""
    outer, self._phase = self._phase, name
    if self._bar is not None:
      self._bar.update(self._task, facts=f"{self._facts}  ({name})")
    try:
      yield
    finally:
      self._phase, self._moved = outer, time.monotonic()
      if self._bar is not None:
        self._bar.update(self._task, facts=self._facts)

  def _watch(self) -> None:
    said_at = self._moved
    while not self._stop.wait(min(1.0, self._stall_seconds / 4)):
      now = time.monotonic()
      if now - max(self._moved, said_at) < self._stall_seconds:
        continue
      said_at = now
      still = f"still {self._phase}" if self._phase else f"no step has finished since step {self._step}"
      self.say(f"{still} after {now - self._moved:.0f} s")
