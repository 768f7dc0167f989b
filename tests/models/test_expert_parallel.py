"""Expert parallelism equals every expert on every token, whatever the mesh, the router and the size of the buffers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.expert_parallel import expert_feed_forward
from qwen3_jax.models.moe import dense_dispatch
from qwen3_jax.sharding import make_mesh

E, K = 8, 2
BIAS = {"spread": [0] * E, "all on one shard": [9, 8] + [0] * (E - 2), "on two, six empty": [9] + [0] * (E - 2) + [9]}
# Mesh, router, tokens of a dispatch, buffer, remat. A buffer of 0.4 of the balanced load needs several rounds, as does
# one shard that gets all tokens; what the first round leaves is kept (dots) or computed again (full).
CASES = [
  ({"expert": 8}, "spread", 4096, 1.25, "dots"),
  ({"expert": 8}, "all on one shard", 2, 1.0, "full"),
  ({"fsdp": 2, "expert": 4}, "spread", 8, 0.4, "dots"),
  ({"fsdp": 2, "expert": 4}, "on two, six empty", 4096, 1.25, "dots"),
  ({"expert": 2, "tensor": 2, "context": 2}, "spread", 8, 0.4, "full"),
  ({"expert": 2, "tensor": 2, "context": 2}, "all on one shard", 4096, 1.25, "dots"),
  ({"data": 8}, "on two, six empty", 4, 1.0, "dots"),
]


def arguments(bias, B=8, T=8, D=16, F=12):
  keys = jax.random.split(jax.random.key(0), 5)
  x = jax.random.normal(keys[0], (B, T, D))
  logits = jax.random.normal(keys[1], (B, T, E)) + jnp.asarray(bias, jnp.float32)
  weights, experts = jax.lax.top_k(jax.nn.softmax(logits), K)
  matrices = [jax.random.normal(key, shape) * 0.3 for key, shape in zip(keys[2:], [(E, D, F), (E, D, F), (E, F, D)])]
  return x, weights, experts, *matrices


def value_and_gradients(dispatch, x, weights, experts, *matrices):
  loss = lambda x, weights, *matrices: jnp.sum(jnp.sin(dispatch(x, weights, experts, *matrices)))
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)))(x, weights, *matrices)


@pytest.mark.parametrize(("mesh_shape", "router", "tokens", "buffer", "remat"), CASES, ids=str)
def test_equals_every_expert_on_every_token(mesh_shape, router, tokens, buffer, remat):
  case = arguments(BIAS[router])
  used = len(np.unique(case[2]))
  assert used == E if router == "spread" else used == 2
  value, expected = value_and_gradients(dense_dispatch, *case)
  config = ModelConfig(
    num_experts=E, num_experts_per_token=K, expert_dispatch_tokens=tokens, expert_buffer=buffer, remat=remat
  )
  with jax.set_mesh(make_mesh(mesh_shape)):
    ours, gradients = value_and_gradients(lambda *arguments: expert_feed_forward(config, *arguments), *case)
  assert float(ours) == pytest.approx(float(value), rel=1e-5)
  for gradient, reference in zip(gradients, expected):
    assert float(jnp.linalg.norm(reference)) > 0.1
    np.testing.assert_allclose(gradient, reference, atol=2e-6 * float(jnp.max(jnp.abs(reference))))


def test_no_mesh_or_an_uneven_batch_is_left_to_the_caller():
  config = ModelConfig(num_experts=E, num_experts_per_token=K)
  assert expert_feed_forward(config, *arguments(BIAS["spread"])) is None
  with jax.set_mesh(make_mesh({"expert": 8})):
    assert expert_feed_forward(config, *arguments(BIAS["spread"], B=3)) is None
