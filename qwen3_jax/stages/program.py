"""The train program of a stage, whatever its kind."""

from __future__ import annotations

from ml_collections import ConfigDict

from qwen3_jax.config import stage_model
from qwen3_jax.objectives.loss_output import Objective
from qwen3_jax.optimizer import make_optimizer
from qwen3_jax.train_program import RolloutFields, TrainProgram


def stage_program(
  config: ConfigDict, name: str, objective: Objective, rollout: RolloutFields | None = None
) -> TrainProgram:
  """Of stage `name` of a checked config, with an objective; `rollout` where it trains on rollouts."""
  settings = config.stages[name]
  return TrainProgram(
    model=stage_model(config, name),
    objective=objective,
    optimizer=make_optimizer(settings.optimizer),
    batch_shape=(settings.batch_size, settings.sequence_length),
    micro_batches=settings.micro_batches,
    clip_norm=settings.optimizer.clip_norm,
    balance_counts=settings.balance_counts,
    gradient_dtype=settings.optimizer.gradient_dtype,
    offload_optimizer=settings.optimizer.offload,
    rollout=rollout,
  )
