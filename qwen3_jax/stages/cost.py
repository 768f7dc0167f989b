"""What stages cost beside each other, for the time that a whole run has left."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from qwen3_jax.config import ROLLOUT_KINDS, stage_model, teacher_model
from qwen3_jax.models.flops import forward_flops_per_token, training_flops_per_token
from qwen3_jax.stages.kinds import trained_tokens

_WRITING = 2.0  # a stage that learns from what it writes takes about twice as long as one that reads


def stage_flops(config: ConfigDict, name: str) -> float:
  """Operations of stage `name` of a checked config, roughly: its training, what it writes, its teachers."""
  settings = config.stages[name]
  per_token = training_flops_per_token(stage_model(config, name), settings.sequence_length)
  if settings.kind in ROLLOUT_KINDS:
    per_token *= _WRITING
  for teacher in settings.get("teachers", ()):
    per_token += forward_flops_per_token(teacher_model(config, name, teacher), settings.sequence_length)
  return per_token * trained_tokens(settings)


def later_share(config: ConfigDict, name: str, later: Sequence[str]) -> float:
  """What stages cost that run after `name`, in units of what it costs itself."""
  return sum(stage_flops(config, other) for other in later) / stage_flops(config, name)
