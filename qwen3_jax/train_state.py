"""TrainState: everything that a step changes, how it starts and how it is laid out on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, abstract_parameters, initialize
from qwen3_jax.sharding import parameter_shardings, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  step: jax.Array  # int32 []: steps done in this stage, skipped ones included
  params: Parameters
  optimizer: Any  # optax state
  rng: jax.Array  # uint32 [2]: the run's key; a step folds its number in
  skipped: jax.Array  # int32 []: non-finite steps since the last finite one


def initial_state(params: Parameters, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
  """Step 0 with the given parameters."""
  return TrainState(_zero(), params, optimizer.init(params), jax.random.PRNGKey(seed), _zero())


def _zero() -> jax.Array:
  return jnp.zeros((), jnp.int32)  # one for each counter: a donated buffer has one owner


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """The state as ShapeDtypeStructs with their shardings; allocates nothing."""
  shapes = jax.eval_shape(lambda params: initial_state(params, optimizer, 0), abstract_parameters(config))
  of_parameters, whole = parameter_shardings(config, mesh), replicated(mesh)
  shardings = TrainState(
    step=whole,
    params=of_parameters,
    optimizer=optax.tree.map_params(
      optimizer, lambda _, sharding: sharding, shapes.optimizer, of_parameters, transform_non_params=lambda _: whole
    ),
    rng=whole,
    skipped=whole,
  )
  return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)


def create_state(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
  """A fresh state, initialised directly into its shardings."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, optimizer, mesh))
  return jax.jit(lambda: initial_state(initialize(config, seed), optimizer, seed), out_shardings=shardings)()


def next_stage_state(state: TrainState, seed: int, optimizer: optax.GradientTransformation | None = None) -> TrainState:
  """The state that the next stage starts from: step 0, parameters carried over, and the optimizer state too unless a new
  `optimizer` is given."""
  like = state.step.sharding
  start = lambda: TrainState(
    step=_zero(),
    params={},
    optimizer={},
    rng=jax.random.PRNGKey(seed),
    skipped=_zero(),
  )
  fresh = jax.jit(start, out_shardings=like)()
  optimizer_state = state.optimizer if optimizer is None else optimizer.init(state.params)
  return dataclasses.replace(fresh, params=state.params, optimizer=optimizer_state)
