"""A sequence split over `context`: its layout, and attention on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.flash_attention import reference
from qwen3_jax.models.context_parallel import attend, from_balanced, to_balanced
from qwen3_jax.sharding import current_mesh, make_mesh


@pytest.mark.parametrize("C", [2, 4, 8])
def test_each_shard_holds_an_early_and_a_late_chunk(C):
  T = 4 * C
  x = jnp.arange(2 * T, dtype=jnp.float32).reshape(2, T)
  with jax.set_mesh(make_mesh({"context": C}, jax.devices()[:C])):
    balanced = to_balanced(current_mesh(), x)
    chunks = np.asarray(x).reshape(2, 2 * C, 2)
    expected = np.concatenate([chunks[:, [i, 2 * C - 1 - i]] for i in range(C)], axis=1)
    np.testing.assert_array_equal(balanced, expected.reshape(2, T))
    np.testing.assert_array_equal(from_balanced(current_mesh(), balanced), x)


MESHES = [
  {"context": 8},
  {"data": 2, "context": 4},
  {"context": 2, "tensor": 4},
  {"fsdp": 2, "tensor": 2, "context": 2},
]


@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_attention_equals_the_reference(mesh_shape):
  B, T, N, K, H = 2, 64, 8, 2, 8
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = [jax.random.normal(key, (B, T, heads, H)) for key, heads in zip(keys, (N, K, K))]
  segments = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 5, (B, T)), axis=1), jnp.int32)

  def value_and_gradients(attention):
    loss = lambda *arrays: jnp.sum(jnp.sin(3 * attention(*arrays)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)

  value, expected = value_and_gradients(lambda *arrays: reference.attention(*arrays, segments))
  with jax.set_mesh(make_mesh(mesh_shape)):
    mesh = current_mesh()

    def through_the_layout(*arrays):
      if mesh.shape["context"] == 1:
        return attend(*arrays, segments)
      return from_balanced(mesh, attend(*(to_balanced(mesh, x) for x in (*arrays, segments))))

    ours, gradients = value_and_gradients(through_the_layout)
  assert float(ours) == pytest.approx(float(value), rel=1e-5)
  for gradient, wanted in zip(gradients, expected):
    assert float(jnp.linalg.norm(wanted)) > 1.0
    np.testing.assert_allclose(gradient, wanted, atol=3e-5)
