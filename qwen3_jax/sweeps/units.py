"""The work units of a sweep and their folders.

A sweep's folder holds sweep.json, data/ (prepared corpora that the work units share) and units/NAME/, the work
directory of each, with work_unit.json and output.log beside what the run itself writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import load
from qwen3_jax.sweeps.study import CONFIG, Parameters, Study
from qwen3_jax.workdir import Workdir, WorkdirError, read_json, write_json

# What has become of a work unit. `unfinished`: it runs, or was stopped; the same sweep continues it.
NOT_STARTED, UNFINISHED, DONE, FAILED = STATUSES = ("not started", "unfinished", "done", "failed")

_LONGEST_NAME = 100  # characters of a folder's name
_CACHE = "config.data.cache"


class SweepError(WorkdirError):
  """The folder does not hold the sweep that is asked for; the message says why."""


@dataclasses.dataclass
class WorkUnit:
  """One run of a sweep."""

  folder: Path  # its work directory
  parameters: Parameters
  command: list[str]
  status: str = NOT_STARTED
  exit_status: int | None = None  # of the last attempt; negative for a signal
  seconds: float = 0.0  # over all attempts

  @property
  def name(self) -> str:
    return self.folder.name

  @property
  def output(self) -> Path:
    """What the run printed, of all attempts."""
    return self.folder / "output.log"

  def started(self) -> None:
    self.status, self.exit_status = UNFINISHED, None
    self.write()

  def ended(self, exit_status: int, seconds: float) -> None:
    """Notes how an attempt ended. Exit status 0 of a run whose stages are not all done means that it was stopped."""
    self.exit_status, self.seconds = exit_status, self.seconds + seconds
    self.status = FAILED if exit_status else UNFINISHED if unfinished_stages(self.folder) else DONE
    self.write()

  def write(self) -> None:
    own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "folder"}
    write_json(self.folder / "work_unit.json", own)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep's folder holds."""

  folder: Path
  experiment: str  # --config
  overrides: tuple[str, ...]  # key=value, of all work units
  metric: str
  maximize: bool
  units: list[WorkUnit]


def plan(experiment: str, overrides: Sequence[str], study: Study, folder: Path) -> Sweep:
  """The sweep of `study` over an experiment, every config checked; writes nothing.

  Work units that `folder` already holds keep their status, so that the sweep is continued.

  Args:
    experiment: as `--config` of qwen3_jax.main names it.
    overrides: `key=value` for all work units.

  Raises:
    ConfigError: with the problems of all work units.
    SweepError: a work unit was run with another command.
  """
  base = load(experiment, overrides)
  names = short_names({name for parameters in study.parameters for name in parameters})
  units, problems = [], []
  for parameters in study.parameters:
    expanded = study.expand(base, parameters) if study.expand else parameters
    unit = WorkUnit(folder.absolute() / "units" / _folder_name(parameters, names), parameters, [])
    config, own = _with_arguments(experiment, expanded), [*overrides, *_overrides(expanded)]
    if not base.data.cache and _CACHE not in expanded:
      own.append(f"data.cache={folder.absolute() / 'data'}")
    try:
      load(config, own)
    except ConfigError as error:
      problems += [f"{unit.name}: {problem}" for problem in error.problems]
    flags = [f"--config={config}", f"--workdir={unit.folder}", *(f"--config.{override}" for override in own)]
    unit.command = [sys.executable, "-m", "qwen3_jax.main", *flags]
    units.append(_as_left(unit))
  if problems:
    raise ConfigError(problems)
  if twice := {unit.name for unit in units if sum(unit.folder == other.folder for other in units) > 1}:
    raise SweepError(f"work units that are the same: {', '.join(sorted(twice))}")
  return Sweep(folder.absolute(), experiment, tuple(overrides), study.metric, study.maximize, units)


def write(sweep: Sweep) -> None:
  """Writes what `read` reads; work units of an earlier, smaller or larger study in the same folder stay."""
  for unit in sweep.units:
    unit.write()
  known = {unit.name for unit in sweep.units}
  earlier = [name for name in _read_names(sweep.folder) if name not in known]
  description = {
    "experiment": sweep.experiment,
    "overrides": sweep.overrides,
    "metric": sweep.metric,
    "maximize": sweep.maximize,
    "units": [*(unit.name for unit in sweep.units), *earlier],
  }
  write_json(sweep.folder / "sweep.json", description)


def read(folder: Path) -> Sweep:
  """The sweep that `folder` holds. Raises SweepError when it holds none, or one that cannot be read."""
  file = folder / "sweep.json"
  if not file.is_file():
    raise SweepError(f"sweep={folder}: has no sweep.json; expected the --workdir of launch.local_sweep")
  try:
    found = read_json(file)
    units = [_read_unit(folder / "units" / name) for name in found["units"]]
    described = {key: found[key] for key in ("experiment", "metric", "maximize")}
    return Sweep(folder=folder, overrides=tuple(found["overrides"]), units=units, **described)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise SweepError(f"sweep={folder}: damaged ({error})") from error


def unfinished_stages(workdir: Path) -> list[str]:
  """Stages that the run in `workdir` has yet to finish; [] where there is no run of qwen3_jax.main."""
  run = Workdir(workdir)
  if not run.config.is_file():
    return []
  config = read_json(run.config)
  names = [config["stage"]] if config.get("stage") else config["pipeline"]
  return [name for name in names if not run.is_done(name)]


def short_names(names: Iterable[str]) -> dict[str, str]:
  """For each dotted name the shortest end of it that no other name has."""
  names = sorted(names)
  short = {}
  for name in names:
    parts = name.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    others = [f".{other}" for other in names if other != name]
    short[name] = next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), name)
  return short


def written(value: Any) -> str:
  """A value as a command line takes it."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def _folder_name(parameters: Parameters, names: Mapping[str, str]) -> str:
  full = ",".join(f"{names[name]}={written(value)}" for name, value in parameters.items()) or "only"
  safe = re.sub(r"[^A-Za-z0-9._=,+-]", "_", full)[:_LONGEST_NAME]
  return safe if safe == full else f"{safe}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _with_arguments(experiment: str, parameters: Parameters) -> str:
  """`experiment` with the parameters that are its arguments, in the place of those of the same name."""
  file, _, given = experiment.partition(":")
  own = {name: written(value) for name, value in parameters.items() if not name.startswith(CONFIG)}
  kept = [item for item in given.split(",") if item and item.partition("=")[0].strip() not in own]
  return ":".join(filter(None, (file, ",".join([*kept, *(f"{name}={value}" for name, value in own.items())]))))


def _overrides(parameters: Parameters) -> list[str]:
  return [f"{name.removeprefix(CONFIG)}={written(v)}" for name, v in parameters.items() if name.startswith(CONFIG)]


def _as_left(unit: WorkUnit) -> WorkUnit:
  """The work unit as its folder has it, if it was planned before."""
  if not (unit.folder / "work_unit.json").is_file():
    return unit
  found = _read_unit(unit.folder)
  if found.command[1:] != unit.command[1:]:  # but for the interpreter
    before, now = (sorted(set(a.command) - set(b.command)) for a, b in ((found, unit), (unit, found)))
    raise SweepError(
      f"{unit.folder}: was run with {' '.join(before) or 'less'}, is now asked for with {' '.join(now) or 'less'};"
      " give another --workdir"
    )
  found.command = unit.command
  return found


def _read_unit(folder: Path) -> WorkUnit:
  return WorkUnit(folder=folder, **read_json(folder / "work_unit.json"))


def _read_names(folder: Path) -> list[str]:
  file = folder / "sweep.json"
  return read_json(file)["units"] if file.is_file() else []
