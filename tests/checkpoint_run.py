"""A stand-in for a run, for the tests of checkpoints: as a script it trains and saves until it is killed."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen3_jax.checkpoint import Checkpointer
from qwen3_jax.train_state import TrainState, initial_state

OPTIMIZER = optax.scale_by_adam()


def mesh_of(*shape: int) -> Mesh:
  return jax.make_mesh(shape, ("a", "b")[: len(shape)], devices=jax.devices()[: int(np.prod(shape))])


def first_state(rows: int) -> TrainState:
  params = {
    "embed": {"embedding": (jax.random.bits(jax.random.key(1), (rows, 64)) % 113).astype(jnp.float32)},
    "layers": {"kernel": (jnp.arange(2 * 16 * 24) % 83).reshape(2, 16, 24).astype(jnp.bfloat16), "scale": jnp.ones(8)},
  }
  return initial_state(params, OPTIMIZER, seed=0)


def abstract(mesh: Mesh, rows: int = 512) -> TrainState:
  """Large axes sharded over all of the mesh, the rest replicated."""

  def leaf(x):
    spec = PartitionSpec(*[mesh.axis_names if size % mesh.size == 0 and size > 1 else None for size in x.shape[:1]])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(leaf, jax.eval_shape(lambda: first_state(rows)))


def state_at(step: int, mesh: Mesh, rows: int = 512) -> TrainState:
  """What `train` reaches after `step` steps, computed anew."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract(mesh, rows))
  state = jax.jit(lambda: first_state(rows), out_shardings=shardings)()
  for _ in range(step):
    state = train(state)
  return state


@jax.jit
def _next(state):
  """Exact in every dtype, so that states can be compared bit for bit."""
  return jax.tree.map(lambda x: (x + 1) % 113 if jnp.issubdtype(x.dtype, jnp.floating) else x + 1, state)


train = jax.jit(_next, donate_argnums=0)


def run(directory: str, rows: int) -> None:
  mesh = mesh_of(len(jax.devices()))
  checkpoints = Checkpointer(directory, keep=2)
  restored = checkpoints.restore(abstract(mesh, rows))
  state, step = (restored.state, restored.step) if restored else (state_at(0, mesh, rows), 0)
  while True:
    state, step = train(state), step + 1
    checkpoints.save(step, state, data_state={"position": 10 * step}, metrics={"loss": 1 / step})
    print(step, flush=True)
    time.sleep(0.01)


if __name__ == "__main__":
  run(sys.argv[1], int(sys.argv[2]))
