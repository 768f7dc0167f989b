"""The train program of a stage, whatever its kind."""

from __future__ import annotations

import zlib
from typing import Any

from ml_collections import ConfigDict

from qwen3_jax.config import stage_model
from qwen3_jax.objectives.loss_output import Objective
from qwen3_jax.optimizer import make_optimizer
from qwen3_jax.train_program import TrainProgram


def stage_seed(config: ConfigDict, name: str) -> int:
  """Of what stage `name` draws; stages that share data read it in different orders."""
  return zlib.crc32(f"{config.seed}/{name}".encode())


def stage_program(config: ConfigDict, name: str, objective: Objective, **of_batch: Any) -> TrainProgram:
  """Of stage `name` of a checked config, with an objective; `of_batch`: what batches bring beside tokens."""
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
    **of_batch,
  )
