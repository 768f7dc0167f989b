"""Runs a study of an experiment on this machine, one process a work unit:

  python -m launch.local_sweep --config=experiments/miniature.py:post=none,stage=s1 --study=lr --workdir=workdir/lr

A study is one of the experiment's own STUDIES or one that all have (qwen3_jax/sweeps/studies.py). `--config.KEY=VALUE`
sets a key of all work units. Each has a work directory in --workdir, with its parameters in work_unit.json and what it
printed in output.log. The same command again skips those that are done and continues the others. One that fails does
not stop the others. SIGTERM and SIGINT are passed on to those that run, and no other starts. Then:

  python -m qwen3_jax.report --sweep=workdir/lr
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence

from absl import app, flags

from launch import sweep_flags
from launch.children import Children
from qwen3_jax.sweeps import units
from qwen3_jax.sweeps.units import DONE, WorkUnit


def main(argv: Sequence[str]) -> None:
  sweep = sweep_flags.sweep_from_flags(argv)
  if flags.FLAGS.dry_run:
    for unit in sweep.units:
      print(f"{unit.name}: {unit.status}\n  {shlex.join(unit.command)}")
    return
  with sweep_flags.held(sweep):
    units.write(sweep)
    stopped = run(sweep.units, flags.FLAGS.parallel)
  sweep_flags.finish(sweep, stopped)


def run(work_units: Sequence[WorkUnit], parallel: int = 1) -> bool:
  """Runs those that are not done, `parallel` at a time, to their end. Returns whether a signal stopped it."""
  waiting = [unit for unit in work_units if unit.status != DONE]
  running: list[tuple[WorkUnit, subprocess.Popen[bytes], float]] = []
  with Children() as children:
    while running or (waiting and not children.signals):
      while waiting and len(running) < parallel and not children.signals:
        unit = waiting.pop(0)
        sweep_flags.say(unit, "starts")
        unit.started()
        with open(unit.output, "ab") as output:
          child = children.start(unit.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        running.append((unit, child, time.monotonic()))
      time.sleep(0.05)
      for unit, child, started in running:
        if child.poll() is not None:
          unit.ended(child.returncode, time.monotonic() - started)
          sweep_flags.say(unit, unit.status)
      running = [entry for entry in running if entry[1].returncode is None]
    return bool(children.signals)


if __name__ == "__main__":  # defined only here, since other commands have flags of these names
  sweep_flags.define()
  flags.DEFINE_bool("dry_run", False, "Print the work units' commands and run nothing.")
  app.run(main, flags_parser=sweep_flags.parse_flags)
