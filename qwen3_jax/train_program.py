"""TrainProgram: what is compiled for one stage, on devices that are here or for a topology that is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from qwen3_jax.batch import Batch, Rollout, Teachers, TopPredictions
from qwen3_jax.compiler_options import compiler_options
from qwen3_jax.models.cached import decoding_layout
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.flops import training_flops_per_token
from qwen3_jax.models.transformer import abstract_parameters
from qwen3_jax.objectives.loss_output import Objective
from qwen3_jax.sharding import array_spec, batch_sharding, parameter_shardings, replicated
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
  top_predictions: int = 0  # of a teacher that batches bring for each token
  teachers: tuple[ModelConfig, ...] = ()  # whose final hidden states batches bring

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
    field = lambda dtype, *axes: jax.ShapeDtypeStruct((*self.batch_shape, *axes), dtype, sharding=sharding)
    integers, floats = field(np.int32), field(np.float32)
    rollout = top = teachers = None
    if self.rollout is not None:
      rollout = Rollout(
        advantages=floats,
        shares=floats,
        entropy_bonus=floats,
        sampling_log_probabilities=floats,
        old_log_probabilities=floats if self.rollout.old else None,
        reference_log_probabilities=floats if self.rollout.reference else None,
        experts=field(np.int16, *(self.recorded_experts or ())) if self.rollout.experts else None,
      )
    if self.top_predictions:
      top = TopPredictions(field(np.int32, self.top_predictions), field(np.float32, self.top_predictions))
    if self.teachers:
      teachers = Teachers(integers, tuple(field(teacher.dtype, teacher.hidden_size) for teacher in self.teachers))
    return Batch(integers, integers, floats, integers, integers, rollout, top, teachers)

  def abstract_heads(self, mesh: Mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The teachers' heads [D', V], which a step takes as constants: as many columns as the student's."""

    def head(teacher: ModelConfig) -> jax.ShapeDtypeStruct:
      shape = (teacher.hidden_size, self.model.vocab_size)
      sharding = NamedSharding(mesh, array_spec(("embed", "vocab"), shape, mesh))
      return jax.ShapeDtypeStruct(shape, teacher.dtype, sharding=sharding)

    return tuple(map(head, self.teachers))

  def arguments(self, mesh: Mesh) -> dict[str, Any]:
    """What a step is given, by kind, as ShapeDtypeStructs with their shardings."""
    state = self.abstract_state(mesh)
    arguments = {"parameters": state.params, "optimizer": state.optimizer, "batch": self.abstract_batch(mesh)}
    return arguments | ({"teacher heads": self.abstract_heads(mesh)} if self.teachers else {})

  def resident(self, mesh: Mesh) -> dict[str, Any]:
    """What else is on the devices during a step, as `arguments`: a reference model, in the dtypes it computes in."""
    if self.rollout is None or not self.rollout.reference:
      return {}
    return {"reference": frozen_parameters(self.model, mesh)}

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    """The train step on `mesh`, traced and lowered; `.compile()` gives `step(state, batch, learning_rate, *constants)`.

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
    heads = (self.abstract_heads(mesh),) if self.teachers else ()
    shardings, of_heads = jax.tree.map(lambda x: x.sharding, (state, heads))
    jitted = jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), *of_heads),
      out_shardings=(shardings, replicated(mesh)),
      compiler_options=compiler_options(mesh),
    )
    with jax.set_mesh(mesh):
      return jitted.lower(state, self.abstract_batch(mesh), jax.ShapeDtypeStruct((), np.float32), *heads)


def frozen_parameters(model: ModelConfig, mesh: Mesh) -> Any:
  """Parameters of a model that is not trained, in the dtypes it computes in, as ShapeDtypeStructs with shardings."""
  shapes = jax.eval_shape(lambda params: decoding_layout(model, params, stacked=True), abstract_parameters(model))
  placed = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(placed, shapes, parameter_shardings(model, mesh))
