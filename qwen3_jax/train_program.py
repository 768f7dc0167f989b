"""TrainProgram: what is compiled for one stage, on devices that are here or for a topology that is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from qwen3_jax.batch import Batch, Rollout
from qwen3_jax.compiler_options import compiler_options
from qwen3_jax.models.cached import decoding_layout
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.flops import training_flops_per_token
from qwen3_jax.models.transformer import abstract_parameters
from qwen3_jax.objectives.loss_output import Objective
from qwen3_jax.sharding import batch_sharding, parameter_shardings, replicated
from qwen3_jax.train_state import TrainState, abstract_state, create_state
from qwen3_jax.train_step import make_train_step


@dataclasses.dataclass(frozen=True)
class RolloutFields:
  """Which of the optional fields of a batch's `Rollout` there are."""

  old: bool = False
  reference: bool = False
  experts: bool = False


@dataclasses.dataclass(frozen=True)
class TrainProgram:
  """Everything that decides the train step; nothing of data, schedule or logging."""

  model: ModelConfig
  objective: Objective
  optimizer: optax.GradientTransformation
  batch_shape: tuple[int, int]  # global [B, T]
  micro_batches: int
  clip_norm: float
  balance_counts: str = "exact"  # of the balance loss over micro-batches
  gradient_dtype: str = "float32"
  offload_optimizer: bool = False  # its state waits in the host's memory between steps
  rollout: RolloutFields | None = None  # of stages that train on rollouts

  @property
  def tokens_per_step(self) -> int:
    return self.batch_shape[0] * self.batch_shape[1]

  @property
  def flops_per_step(self) -> float:
    """Analytic, over all devices, recomputation not counted."""
    return training_flops_per_token(self.model, self.batch_shape[1]) * self.tokens_per_step

  @property
  def recorded_experts(self) -> tuple[int, int] | None:
    """(L, k) where batches tell whom tokens went to in their rollout."""
    if self.rollout is None or not self.rollout.experts:
      return None
    return self.model.num_layers, self.model.num_experts_per_token

  def abstract_state(self, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with their shardings; allocates nothing."""
    return abstract_state(self.model, self.optimizer, mesh, self.offload_optimizer)

  def create_state(self, mesh: Mesh, seed: int) -> TrainState:
    """A fresh state, initialised directly into its shardings."""
    return create_state(self.model, self.optimizer, mesh, seed, self.offload_optimizer)

  def abstract_batch(self, mesh: Mesh) -> Batch:
    sharding = batch_sharding(mesh)
    integers = jax.ShapeDtypeStruct(self.batch_shape, np.int32, sharding=sharding)
    floats = jax.ShapeDtypeStruct(self.batch_shape, np.float32, sharding=sharding)
    if self.rollout is None:
      return Batch(integers, integers, floats, integers, integers)
    of_experts = (*self.batch_shape, *(self.recorded_experts or ()))
    rollout = Rollout(
      advantages=floats,
      shares=floats,
      entropy_bonus=floats,
      sampling_log_probabilities=floats,
      old_log_probabilities=floats if self.rollout.old else None,
      reference_log_probabilities=floats if self.rollout.reference else None,
      experts=jax.ShapeDtypeStruct(of_experts, np.int16, sharding=sharding) if self.rollout.experts else None,
    )
    return Batch(integers, integers, floats, integers, integers, rollout)

  def arguments(self, mesh: Mesh) -> dict[str, Any]:
    """What a step is given, by kind, as ShapeDtypeStructs with their shardings."""
    state = self.abstract_state(mesh)
    return {"parameters": state.params, "optimizer": state.optimizer, "batch": self.abstract_batch(mesh)}

  def resident(self, mesh: Mesh) -> dict[str, Any]:
    """What else is on the devices during a step, as `arguments`: a reference model, in the dtypes it computes in."""
    if self.rollout is None or not self.rollout.reference:
      return {}
    of_layout = lambda params: decoding_layout(self.model, params, stacked=True)
    shapes = jax.eval_shape(of_layout, abstract_parameters(self.model))
    placed = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return {"reference": jax.tree.map(placed, shapes, parameter_shardings(self.model, mesh))}

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    """The train step on `mesh`, traced and lowered; `.compile()` gives `step(state, batch, learning_rate)`.

    Compiled ahead of time, a shape that changed is an error, never a second compilation. The state is donated.
    """
    step = make_train_step(
      self.model,
      self.objective,
      self.optimizer,
      clip_norm=self.clip_norm,
      micro_batches=self.micro_batches,
      balance_counts=self.balance_counts,
      gradient_dtype=self.gradient_dtype,
      offload_optimizer=self.offload_optimizer,
    )
    state = self.abstract_state(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
      out_shardings=(shardings, replicated(mesh)),
      compiler_options=compiler_options(mesh),
    )
    with jax.set_mesh(mesh):
      return jitted.lower(state, self.abstract_batch(mesh), jax.ShapeDtypeStruct((), np.float32))
