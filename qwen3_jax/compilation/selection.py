"""Whether the stages of a config that are compiled can run on a number of devices."""

from __future__ import annotations

from ml_collections import ConfigDict

from qwen3_jax.config import stage_names
from qwen3_jax.config_checks import ConfigError, validate


def validate_selection(config: ConfigDict, device_count: int) -> None:
  """Raises ConfigError as `validate` does, but not for stages that are not compiled: they may be for other meshes."""
  others = tuple(f"stages.{name}." for name in config.stages if name not in stage_names(config))
  try:
    validate(config, device_count)
  except ConfigError as error:
    problems = [problem for problem in error.problems if not problem.startswith(others)]
    if problems:
      raise ConfigError(problems) from None
