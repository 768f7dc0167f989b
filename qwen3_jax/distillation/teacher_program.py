"""TeacherProgram: what a frozen teacher makes of a batch, compiled for devices that are here or not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.batch import Batch
from qwen3_jax.compiler_options import compiler_options
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.flops import forward_flops_per_token
from qwen3_jax.models.transformer import Parameters, from_parameters
from qwen3_jax.sharding import batch_sharding, constrain
from qwen3_jax.train_program import frozen_parameters
from qwen3_jax.train_step import map_micro_batches


@dataclasses.dataclass(frozen=True)
class TeacherProgram:
  """`hidden(parameters, batch, number) -> [B, T, D']`, the final hidden states, in the model's dtype.

  The head is left to the student's step, which compares the predictions without having them in memory. Micro-batches
  in which no token learns from teacher `number` are left out, and their hidden states are 0.
  """

  model: ModelConfig
  batch_shape: tuple[int, int]  # global [B, T]
  micro_batches: int

  @property
  def tokens_per_step(self) -> int:
    return self.batch_shape[0] * self.batch_shape[1]

  @property
  def flops_per_step(self) -> float:
    """Analytic: a forward pass is a third of a training step; without the head."""
    head = 2.0 * self.model.hidden_size * self.model.vocab_size
    return (forward_flops_per_token(self.model, self.batch_shape[1]) - head) * self.tokens_per_step

  def arguments(self, mesh: Mesh) -> dict[str, Any]:
    """What it is given, by kind, as ShapeDtypeStructs with their shardings."""
    return {"parameters": frozen_parameters(self.model, mesh), "batch": self._abstract_batch(mesh)}

  def resident(self, mesh: Mesh) -> dict[str, Any]:
    return {}

  def _abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    field = jax.ShapeDtypeStruct(self.batch_shape, np.int32, sharding=batch_sharding(mesh))
    return dict.fromkeys(_FIELDS, field)

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    jitted = jax.jit(self._hidden, out_shardings=batch_sharding(mesh), compiler_options=compiler_options(mesh))
    number = jax.ShapeDtypeStruct((), np.int32)
    with jax.set_mesh(mesh):
      return jitted.lower(frozen_parameters(self.model, mesh), self._abstract_batch(mesh), number)

  def _hidden(self, params: Parameters, batch: dict[str, jax.Array], number: jax.Array) -> jax.Array:
    B, T = self.batch_shape
    n = self.micro_batches

    def run(part: dict[str, jax.Array]) -> jax.Array:
      model = from_parameters(self.model, params)
      return model.hidden(part["tokens"], part["positions"], part["segment_ids"]).final

    def of_micro_batch(part: dict[str, jax.Array]) -> jax.Array:
      learns = jnp.any((part["choice"] == number) & (part["segment_ids"] > 0))
      nothing = lambda part: jnp.zeros((B // n, T, self.model.hidden_size), self.model.dtype)
      return constrain(jax.lax.cond(learns, run, nothing, part), "batch", "length", "embed")

    return map_micro_batches(of_micro_batch, batch, n)


_FIELDS = ("tokens", "positions", "segment_ids", "choice")


def fields_of(batch: Batch) -> dict[str, jax.Array]:
  """What of a student's batch its teachers read."""
  assert batch.teachers is not None
  return {
    "tokens": batch.tokens,
    "positions": batch.positions,
    "segment_ids": batch.segment_ids,
    "choice": batch.teachers.choice,
  }
