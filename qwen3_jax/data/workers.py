"""Independent pieces of work on several processes, with progress."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_SECONDS = 10  # between lines where there is no terminal

Task = Callable[[int], dict[str, int]]

_task: Task


def run(task: Task, numbers: Sequence[int], *, workers: int, progress: str) -> None:
  """Calls `task` with every number, in `workers` processes (0: one a core; one runs here). `progress` "" is silent.

  Processes are spawned, so `task` must be picklable. The first error ends the work and is raised here.
  """
  workers = min(workers or os.cpu_count() or 1, len(numbers))
  results = map(task, numbers) if workers <= 1 else _in_processes(task, numbers, workers)
  with _Progress(progress, len(numbers)) as shown:
    for counts in results:
      shown.advance(counts)


def _in_processes(task: Task, numbers: Sequence[int], workers: int) -> Iterator[dict[str, int]]:
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (task,))
  try:
    futures = [pool.submit(_call, number) for number in numbers]
    for future in concurrent.futures.as_completed(futures):
      yield future.result()
  finally:
    pool.shutdown(cancel_futures=True)


def _start_worker(task: Task) -> None:
  global _task
  _task = task
  # Tokenizers bring threads of their own; the processes already use every core.
  os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
  parent = multiprocessing.parent_process()
  assert parent is not None

  def end_with_parent() -> None:
    parent.join()
    os._exit(1)  # killed: whoever runs the work again must not find us writing

  threading.Thread(target=end_with_parent, daemon=True).start()


def _call(number: int) -> dict[str, int]:
  return _task(number)


class _Progress:
  """A bar on a terminal, a line now and then elsewhere, on standard error."""

  def __init__(self, title: str, total: int):
    self._title, self._total = title, total
    self._done = 0
    self._counts: dict[str, int] = {}
    self._console = Console(stderr=True)
    self._said = time.monotonic()
    self._bar = Progress(
      TextColumn(title),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn("{task.fields[counts]}"),
      TimeElapsedColumn(),
      TimeRemainingColumn(),
      console=self._console,
      disable=not title or not self._console.is_terminal,
    )

  def __enter__(self) -> _Progress:
    self._bar.start()
    self._id = self._bar.add_task(self._title, total=self._total, counts="")
    return self

  def advance(self, counts: dict[str, int]) -> None:
    self._done += 1
    for key, count in counts.items():
      self._counts[key] = self._counts.get(key, 0) + count
    text = ", ".join(f"{count:,} {key}" for key, count in self._counts.items())
    self._bar.update(self._id, advance=1, counts=text)
    if self._title and not self._console.is_terminal:
      if self._done == self._total or time.monotonic() - self._said >= _LINE_SECONDS:
        self._said = time.monotonic()
        self._console.print(
          f"{self._title}: {self._done}/{self._total} shards, {text}", highlight=False, soft_wrap=True
        )

  def __exit__(self, *_: object) -> None:
    self._bar.stop()
