"""Checks of the settings of stages whose batches the model writes, and of `rl` stages."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from qwen3_jax.objectives.grpo_settings import GRPO
from qwen3_jax.problems.sources import check_spec
from qwen3_jax.rl.advantages import OVERLONG


def rollout_problems(prefix: str, stage: ConfigDict) -> Iterator[str]:
  """One line for each reason why a stage cannot write, or be judged; `prefix` is put before its keys."""
  for key in ("steps", "minibatches", "samples", "evaluate_samples", "evaluate_problems"):
    if key in stage and stage[key] < 1:
      yield f"{prefix}{key}={stage[key]}: must be at least 1"
  if "problems" in stage and not stage.problems:
    yield f"{prefix}problems='': names no problems"
  for key in ("problems", "validation_problems"):
    if stage.get(key) and (problem := check_spec(stage[key])) is not None:
      yield f"{prefix}{key}={problem}"
  if "samples" in stage and min(stage.samples, stage.minibatches) > 0:
    rows = stage.batch_size * stage.minibatches
    if rows % stage.samples:
      yield f"{prefix}samples={stage.samples}: must divide batch_size * minibatches = {rows}"
  rollout = stage.rollout
  if rollout.get("staleness", 0) not in (0, 1):
    yield f"{prefix}rollout.staleness={rollout.staleness}: must be 0 or 1"
  if rollout.temperature <= 0:
    yield f"{prefix}rollout.temperature={rollout.temperature}: must be positive"
  for key in ("slots", "max_new_tokens"):
    if rollout[key] < 1:
      yield f"{prefix}rollout.{key}={rollout[key]}: must be at least 1"
  writes = "problems" in stage or stage.validation_problems
  if writes and rollout.max_new_tokens >= stage.sequence_length:
    yield (
      f"{prefix}rollout.max_new_tokens={rollout.max_new_tokens}: leaves no room for a prompt in"
      f" sequence_length={stage.sequence_length}"
    )
  shares = rollout.modes.to_dict()
  if min(shares.values()) < 0 or abs(sum(shares.values()) - 1.0) > 1e-6:
    yield f"{prefix}rollout.modes={shares}: shares must be at least 0 and add up to 1"


def rl_problems(prefix: str, stage: ConfigDict) -> Iterator[str]:
  """One line for each reason why a stage cannot run; `prefix` is put before its keys."""
  for key in ("epochs", "waves"):
    if stage[key] < 1:
      yield f"{prefix}{key}={stage[key]}: must be at least 1"
  if stage.samples < 2:
    yield f"{prefix}samples={stage.samples}: must be at least 2, advantages compare the answers to a problem"
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
  entropy = stage.entropy
  if entropy.gain < 0 or entropy.target < 0:
    yield f"{prefix}entropy: gain={entropy.gain}, target={entropy.target}: must be at least 0"
  if not entropy.minimum <= entropy.coefficient <= entropy.maximum:
    yield (
      f"{prefix}entropy.coefficient={entropy.coefficient}: must lie in minimum={entropy.minimum} .."
      f" maximum={entropy.maximum}"
    )
