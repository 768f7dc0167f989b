"""What the launchers of sweeps share: their flags, and what they print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags

from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import define_config_flag
from qwen3_jax.config_loading import parse_flags as parse_flags  # the flags_parser of their app.run
from qwen3_jax.sweeps import units
from qwen3_jax.sweeps.studies import find_study
from qwen3_jax.sweeps.units import DONE, FAILED, Sweep, SweepError, WorkUnit
from qwen3_jax.workdir import Workdir, WorkdirError


def define() -> None:
  define_config_flag()
  flags.DEFINE_string("workdir", None, "The sweep's folder.", required=True)
  flags.DEFINE_string("study", "", "Name of the study; may be left out where the experiment has one of its own.")
  flags.DEFINE_integer("seeds", 1, "Runs of every work unit, with config.seed 0, 1, ...", lower_bound=1)
  flags.DEFINE_integer("parallel", 1, "Work units that run at a time.", lower_bound=1)


def sweep_from_flags(argv: Sequence[str]) -> Sweep:
  """The sweep that the command line asks for; prints all problems and exits with 1 when it cannot run."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  given = flags.FLAGS
  try:
    study = find_study(given.config, given.study).with_seeds(given.seeds)
    return units.plan(given.config, given.config_override, study, Path(given.workdir))
  except (ConfigError, SweepError) as error:
    sys.exit(str(error))


@contextlib.contextmanager
def held(sweep: Sweep) -> Iterator[None]:
  """Holds the lock on the sweep's folder; exits with 1 when another process does."""
  try:
    with Workdir(sweep.folder):
      yield
  except WorkdirError as error:
    sys.exit(f"error: {error}")


def say(unit: WorkUnit, what: str) -> None:
  print(f"[{unit.name}] {what}", flush=True)


def finish(sweep: Sweep, stopped: bool) -> None:
  """Prints how it ended; the exit status is 1 when a work unit failed. `stopped`: by a signal."""
  done, failed = ([unit for unit in sweep.units if unit.status == status] for status in (DONE, FAILED))
  print(f"{len(done)} of {len(sweep.units)} work units done, {len(failed)} failed. The table:")
  print(f"  python -m qwen3_jax.report --sweep={sweep.folder}")
  for unit in failed:
    print(f"failed: {unit.name}, exit status {unit.exit_status}; see {unit.output}", file=sys.stderr)
  if stopped:
    print("Stopped by a signal. The same command continues.")
  sys.exit(1 if failed else 0)
