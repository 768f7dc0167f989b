"""The oracle: every group's matrix on every row, then the right one kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def grouped_matmul(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
  """Row i of lhs [M, D] times its group's matrix of rhs [E, D, F] -> [M, F]; rows beyond the groups give 0."""
  E = rhs.shape[0]
  group = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(lhs.shape[0]), side="right")
  return jnp.einsum("md,edf,me->mf", lhs, rhs, jax.nn.one_hot(group, E, dtype=lhs.dtype))
