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


def abstract_state(
  config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, offload_optimizer: bool = False
) -> TrainState:
  """The state as ShapeDtypeStructs with their shardings; allocates nothing.

  With `offload_optimizer` the optimizer's arrays, not its scalars, are in the host's memory.
  """
  shapes = jax.eval_shape(lambda params: initial_state(params, optimizer, 0), abstract_parameters(config))
  of_parameters, whole = parameter_shardings(config, mesh), replicated(mesh)
  place = lambda _, sharding: sharding.with_memory_kind("pinned_host") if offload_optimizer else sharding
  shardings = dataclasses.replace(
    jax.tree.map(lambda _: whole, shapes),
    params=of_parameters,
    optimizer=optax.tree.map_params(
      optimizer, place, shapes.optimizer, of_parameters, transform_non_params=lambda _: whole
    ),
  )
  return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)


def create_state(
  config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int, offload_optimizer: bool = False
) -> TrainState:
  """A fresh state, initialised directly into the shardings of `abstract_state`."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, optimizer, mesh, offload_optimizer))
  return jax.jit(lambda: initial_state(initialize(config, seed), optimizer, seed), out_shardings=shardings)()


def with_fresh_optimizer(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
  """`state` with the optimizer as it starts, in the same shardings."""
  shardings = jax.tree.map(lambda x: x.sharding, state.optimizer)
  return dataclasses.replace(state, optimizer=jax.jit(optimizer.init, out_shardings=shardings)(state.params))


def next_stage_state(state: TrainState, seed: int) -> TrainState:
  """The state that the next stage starts from: step 0, parameters and optimizer state carried over."""
  place = lambda x: jax.device_put(x, state.step.sharding)
  return dataclasses.replace(state, step=place(_zero()), skipped=place(_zero()), rng=place(jax.random.PRNGKey(seed)))
