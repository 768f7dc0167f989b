"""Grouped matmul against numpy, one group at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.grouped_matmul import api, reference

GROUPS = [(5, 3, 8), (0, 16, 0), (1, 0, 0, 15), (0, 0, 1), (64, 65, 63, 0, 7)]


def case(groups, D=12, F=7):
  rng = np.random.default_rng(0)
  lhs = rng.normal(size=(sum(groups), D)).astype(np.float32)
  rhs = rng.normal(size=(len(groups), D, F)).astype(np.float32)
  return jnp.asarray(lhs), jnp.asarray(rhs), jnp.asarray(groups, jnp.int32)


def by_group(lhs, rhs, groups):
  ends = np.cumsum(groups)
  parts = [
    np.asarray(lhs, np.float64)[end - n : end] @ np.asarray(rhs[e], np.float64)
    for e, (n, end) in enumerate(zip(groups, ends))
  ]
  return np.concatenate(parts)


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("implementation", [api.grouped_matmul, reference.grouped_matmul, jax.lax.ragged_dot])
def test_values_and_gradients(implementation, groups):
  lhs, rhs, sizes = case(groups)
  np.testing.assert_allclose(implementation(lhs, rhs, sizes), by_group(lhs, rhs, groups), atol=2e-5)
  cotangent = np.random.default_rng(1).normal(size=(sum(groups), rhs.shape[2])).astype(np.float32)
  _, pullback = jax.vjp(lambda lhs, rhs: implementation(lhs, rhs, sizes), lhs, rhs)
  d_lhs, d_rhs = pullback(jnp.asarray(cotangent))
  np.testing.assert_allclose(d_lhs, by_group(cotangent, np.swapaxes(rhs, 1, 2), groups), atol=2e-5)
  end = 0
  for e, n in enumerate(groups):
    expected = np.asarray(lhs[end : end + n], np.float64).T @ cotangent[end : end + n]
    np.testing.assert_allclose(d_rhs[e], expected, atol=5e-5)
    end += n


def test_shapes_are_checked():
  lhs, rhs, sizes = case((5, 3))
  with pytest.raises(ValueError, match="grouped_matmul"):
    api.grouped_matmul(lhs, rhs, sizes[:1])
