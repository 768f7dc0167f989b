"""Studies that any experiment has, and how a study is found by its name."""

from __future__ import annotations

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from qwen3_jax import nearest
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.sweeps.study import Choice, LogUniform, Parameters, Study, Uniform, grid, random_search


def scaled_learning_rates(config: ConfigDict, parameters: Parameters) -> Parameters:
  """`lr` multiplies the learning rates of every stage, `beta2` and `weight_decay` are those of every stage."""
  keys = {}
  for name, stage in config.stages.items():
    optimizer = f"config.stages.{name}.optimizer."
    for parameter, value in parameters.items():
      if parameter == "lr":
        for key in ("peak_lr", "final_lr"):
          keys[optimizer + key] = float(f"{stage.optimizer[key] * value:.6g}")
      else:
        keys[optimizer + parameter] = value
  return keys


COMMON = {
  "lr": grid({"lr": (0.25, 0.5, 1.0, 2.0, 4.0)}, expand=scaled_learning_rates),
  "optimizer": random_search(
    {"lr": LogUniform(0.2, 5.0), "beta2": Choice((0.9, 0.95, 0.98, 0.99)), "weight_decay": Uniform(0.0, 0.2)},
    trials=16,
    expand=scaled_learning_rates,
  ),
}


def find_study(experiment: str, name: str = "") -> Study:
  """The study of that name: of the experiment's file (its STUDIES), or one that all have.

  Args:
    experiment: as `--config` names it; what follows a colon is not looked at.
    name: "" is the file's only study.

  Raises:
    ConfigError: no such file, no such study, or none named where the file has not exactly one.
  """
  file = Path(experiment.partition(":")[0])
  if not file.is_file():
    raise ConfigError([f"config={str(file)!r}: no such file"])
  own = runpy.run_path(str(file)).get("STUDIES", {})
  if not name and len(own) == 1:
    return next(iter(own.values()))
  known = COMMON | own
  if name not in known:
    hint = nearest.sentence(name, known)
    raise ConfigError([f"study={name!r}: not a study of {file}.{hint} Known: {', '.join(sorted(known))}"])
  return known[name]
