"""The sweep of launch.local_sweep through XManager's local executor (`pip install '.[launch]'`, see docs/launch.md):

  python -m launch.xmanager_sweep --config=experiments/miniature.py:post=none,stage=s1 --study=lr --workdir=workdir/lr

Same flags, same folder: either launcher continues what the other began. A work unit is a job of a binary and its
arguments, so neither Docker nor Bazel nor a network is needed. XManager keeps its own record of experiments and work
units in ~/.xmanager.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging
from xmanager import xm, xm_local

from launch import sweep_flags
from qwen3_jax.sweeps import units
from qwen3_jax.sweeps.units import DONE, WorkUnit

# XManager starts jobs through a shell of its own, which keeps signals to itself: this one says where the run is, and
# becomes it. $0 takes what it prints, $1 its process id.
_RUN = 'echo $$ > "$1"; shift; exec "$@" >> "$0" 2>&1'


def main(argv: Sequence[str]) -> None:
  sweep = sweep_flags.sweep_from_flags(argv)
  logging.set_verbosity(logging.WARNING)
  with sweep_flags.held(sweep):
    units.write(sweep)
    stopped = asyncio.run(run(sweep.folder.name, sweep.units, flags.FLAGS.parallel))
  sweep_flags.finish(sweep, stopped)


async def run(title: str, work_units: Sequence[WorkUnit], parallel: int = 1) -> bool:
  """Runs those that are not done as work units of one XManager experiment, `parallel` at a time, to their end.

  SIGTERM and SIGINT are passed on, and no other starts; a second one kills. Returns whether one came.
  """
  waiting = [unit for unit in work_units if unit.status != DONE]
  if not waiting:
    return False
  slots, signals = asyncio.Semaphore(parallel), _Signals()
  try:
    async with xm_local.create_experiment(experiment_title=title) as experiment:
      executor = xm_local.Local(experimental_stream_output=False)
      (shell,) = experiment.package([xm.binary(executor_spec=executor.Spec(), path="/bin/sh", args=["-c", _RUN])])
      make_job = functools.partial(xm.Job, shell, executor)
      await asyncio.gather(*(_run_one(experiment, make_job, unit, slots, signals) for unit in waiting))
  except RuntimeError:  # at its end XManager raises what a failed job ended with; that is noted by now
    if any(unit.exit_status is None for unit in waiting) and not signals.came:
      raise
  return signals.came


async def _run_one(
  experiment: xm.Experiment,
  make_job: Callable[..., xm.Job],
  unit: WorkUnit,
  slots: asyncio.Semaphore,
  signals: _Signals,
) -> None:
  async with slots:
    if signals.came:
      return
    sweep_flags.say(unit, "starts")
    unit.started()
    started = time.monotonic()
    with signals.reach(unit) as process_id:
      launched = await experiment.add(make_job(args=[str(unit.output), str(process_id), *unit.command]))
      try:
        await launched.wait_until_complete()
        exit_status = 0
      except xm.ExperimentUnitFailedError as error:  # its text alone tells the exit status
        found = re.search(r"code: (-?\d+)", str(error))
        exit_status = int(found[1]) if found else 1
    unit.ended(exit_status, time.monotonic() - started)
    sweep_flags.say(unit, unit.status)


class _Signals:
  """Passes SIGTERM and SIGINT on to the runs, the second time SIGKILL. To be made in the running event loop."""

  def __init__(self) -> None:
    self.came = False
    self._process_ids: set[Path] = set()  # files
    for number in (signal.SIGTERM, signal.SIGINT):
      asyncio.get_running_loop().add_signal_handler(number, self._pass_on)

  @contextlib.contextmanager
  def reach(self, unit: WorkUnit) -> Iterator[Path]:
    """Within it the unit's run gets signals. Gives the file for its process id."""
    file = unit.folder / "process_id"
    file.unlink(missing_ok=True)
    self._process_ids.add(file)
    try:
      yield file
    finally:
      self._process_ids.discard(file)
      file.unlink(missing_ok=True)

  def _pass_on(self) -> None:
    for file in self._process_ids:
      with contextlib.suppress(OSError, ValueError):  # not yet started, or just ended
        os.kill(int(file.read_text()), signal.SIGKILL if self.came else signal.SIGTERM)
    self.came = True


if __name__ == "__main__":
  sweep_flags.define()
  app.run(main, flags_parser=sweep_flags.parse_flags)
