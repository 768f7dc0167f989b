"""Independent pieces of work on several processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence

Task = Callable[[int], None]

_task: Task


def run(task: Task, numbers: Sequence[int], *, workers: int) -> Iterator[None]:
  """Calls `task` with every number, in `workers` processes (0: one a core; one runs here); yields as each is done.

  Processes are spawned, so `task` must be picklable. The first error ends the work and is raised here.
  """
  workers = min(workers or os.cpu_count() or 1, len(numbers))
  return map(task, numbers) if workers <= 1 else _in_processes(task, numbers, workers)


def _in_processes(task: Task, numbers: Sequence[int], workers: int) -> Iterator[None]:
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


def _call(number: int) -> None:
  _task(number)
