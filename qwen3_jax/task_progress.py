"""How far tasks are that count what they have done: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import rich.progress
from rich.console import Console

from qwen3_jax.number_text import duration
from qwen3_jax.on_task import OnTask


@contextlib.contextmanager
def task_progress(console: Console | None = None, line_seconds: float = 10.0) -> Iterator[OnTask]:
  """A function to call as each task goes on, first when it starts, with what had been done before.

  Args:
    console: where to; standard output unless given.
    line_seconds: between lines where there is no terminal; a task that takes less has none.
  """
  console = console or Console(soft_wrap=True, highlight=False)
  if not console.is_terminal:
    yield _Lines(console, line_seconds)
    return
  columns = (rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn())
  with rich.progress.Progress(
    rich.progress.TextColumn("{task.description}", markup=False), *columns, console=console
  ) as bars:
    ids: dict[str, rich.progress.TaskID] = {}

    def show(task: str, done: int, total: int) -> None:
      if task not in ids:
        ids[task] = bars.add_task(task)
      bars.update(ids[task], completed=done, total=total)

    yield show


class _Lines:
  def __init__(self, console: Console, line_seconds: float):
    self._console, self._line_seconds = console, line_seconds
    self._begun: dict[str, tuple[float, int]] = {}  # when a task's first call came, and what was done then
    self._said: dict[str, float] = {}

  def __call__(self, task: str, done: int, total: int) -> None:
    now = time.monotonic()
    started, before = self._begun.setdefault(task, (now, done))
    if now - self._said.get(task, started) < self._line_seconds:
      return
    self._said[task] = now
    line = f"[{task}] {done}/{total} ({done / max(total, 1):.0%})"
    if before < done < total:
      line += f"  {duration((now - started) / (done - before) * (total - done))} left"
    self._console.print(line, markup=False)
