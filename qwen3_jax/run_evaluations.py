"""What a run measures of its stages when they have ended: `config.evaluations`, by `qwen3_jax.evaluate`."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from qwen3_jax.config_checks import ConfigError
from qwen3_jax.workdir import Workdir, read_json


def left_to_measure(config: ConfigDict, stages: Sequence[str], workdir: Workdir) -> list[str]:
  """The evaluations of these stages that are not, or not all, on disk."""
  return [
    name
    for name, settings in config.evaluations.items()
    if settings.stage in stages and not _has(_file(workdir, name), settings.tasks)
  ]


def check_evaluations(config: ConfigDict, stages: Sequence[str], workdir: Workdir) -> None:
  """Raises ConfigError for what is left to measure and could not be; opens problems and files, no model."""
  from qwen3_jax.evaluate import make_tasks

  problems = []
  for name in left_to_measure(config, stages, workdir):
    try:
      arguments = _arguments(config, name, workdir)
      make_tasks(arguments.tasks, arguments)
    except (ValueError, OSError) as error:
      problems.append(f"evaluations.{name}: {error}")
  if problems:
    raise ConfigError(problems)


def run_evaluations(config: ConfigDict, stages: Sequence[str], workdir: Workdir) -> None:
  """Those of stages that have ended, into WORKDIR/evaluations/NAME.json; what is there is not measured again.

  With several processes the first measures, with the model on one of its devices.
  """
  from qwen3_jax.distributed import on_first_process

  on_first_process(lambda: _measure(config, stages, workdir))


def _measure(config: ConfigDict, stages: Sequence[str], workdir: Workdir) -> None:
  from qwen3_jax.data.records import DataError
  from qwen3_jax.evaluate import evaluate

  for name in left_to_measure(config, stages, workdir):
    print(
      f"Evaluating stage {config.evaluations[name].stage!r}: {', '.join(config.evaluations[name].tasks)}", flush=True
    )
    try:
      evaluate(_arguments(config, name, workdir))
    except (ValueError, OSError) as error:
      raise DataError(f"evaluations.{name}: {error}") from error


def _has(file: Path, tasks: Sequence[str]) -> bool:
  """Whether all tasks are in a file, which `evaluate` writes after each."""
  try:
    return set(tasks) <= set(read_json(file))
  except (OSError, ValueError):
    return False


def _file(workdir: Workdir, name: str) -> Path:
  return workdir.path / "evaluations" / f"{name}.json"


def _arguments(config: ConfigDict, name: str, workdir: Workdir) -> argparse.Namespace:
  """Raises ValueError for flags that `evaluate` does not know."""
  from qwen3_jax.evaluate import parser

  settings = config.evaluations[name]
  flags = [
    f"--checkpoint={workdir.stage(settings.stage)}",
    f"--tasks={','.join(settings.tasks)}",
    f"--json={_file(workdir, name)}",
    f"--dtype={config.model.dtype}",
    f"--seed={config.seed}",
    *settings.options,
  ]
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      return parser().parse_args(flags)
  except SystemExit:
    raise ValueError(said.getvalue().strip().rpartition("error: ")[2]) from None
