"""Checks of the settings of an `rl` stage."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from qwen3_jax.objectives.grpo_settings import GRPO
from qwen3_jax.problems.sources import check_spec
from qwen3_jax.rl.advantages import OVERLONG


def rl_problems(prefix: str, stage: ConfigDict) -> Iterator[str]:
  """One line for each reason why a stage cannot run; `prefix` is put before its keys."""
  keys = ("steps", "minibatches", "epochs", "waves", "evaluate_samples")
  wrong = [key for key in keys if stage[key] < 1]
  yield from (f"{prefix}{key}={stage[key]}: must be at least 1" for key in wrong)
  if stage.samples < 2:
    yield f"{prefix}samples={stage.samples}: must be at least 2, advantages compare the answers to a problem"
  elif "minibatches" not in wrong and stage.batch_size * stage.minibatches % stage.samples:
    yield (
      f"{prefix}samples={stage.samples}: must divide batch_size * minibatches = {stage.batch_size * stage.minibatches}"
    )
  if not stage.problems:
    yield f"{prefix}problems='': names no problems"
  for key in ("problems", "validation_problems"):
    if stage[key] and (problem := check_spec(stage[key])) is not None:
      yield f"{prefix}{key}={problem}"
  try:
    GRPO(**stage.grpo)
  except ValueError as error:
    yield f"{prefix}grpo: {error}"
  if stage.overlong not in OVERLONG:
    yield f"{prefix}overlong={stage.overlong!r}: must be one of {', '.join(OVERLONG)}"
  elif stage.overlong == "penalize" and not 0 < stage.overlong_tokens <= stage.rollout.max_new_tokens:
    yield (
      f"{prefix}overlong_tokens={stage.overlong_tokens}: must lie in 1 .. rollout.max_new_tokens ="
      f" {stage.rollout.max_new_tokens}"
    )
  rollout = stage.rollout
  if rollout.staleness not in (0, 1):
    yield f"{prefix}rollout.staleness={rollout.staleness}: must be 0 or 1"
  if rollout.temperature <= 0:
    yield f"{prefix}rollout.temperature={rollout.temperature}: must be positive"
  for key in ("slots", "max_new_tokens"):
    if rollout[key] < 1:
      yield f"{prefix}rollout.{key}={rollout[key]}: must be at least 1"
  if rollout.max_new_tokens >= stage.sequence_length:
    yield (
      f"{prefix}rollout.max_new_tokens={rollout.max_new_tokens}: leaves no room for a prompt in"
      f" sequence_length={stage.sequence_length}"
    )
  entropy = stage.entropy
  if entropy.gain < 0 or entropy.target < 0:
    yield f"{prefix}entropy: gain={entropy.gain}, target={entropy.target}: must be at least 0"
  if not entropy.minimum <= entropy.coefficient <= entropy.maximum:
    yield (
      f"{prefix}entropy.coefficient={entropy.coefficient}: must lie in minimum={entropy.minimum} .."
      f" maximum={entropy.maximum}"
    )
