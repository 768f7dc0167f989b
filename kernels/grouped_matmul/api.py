"""Rows sorted by group times each group's matrix."""

from __future__ import annotations

import jax


def grouped_matmul(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
  """Row i of lhs times the matrix of its group.

  Args:
    lhs: [M, D], rows sorted by group.
    rhs: [E, D, F].
    group_sizes: int32 [E], summing to M; groups may be empty.

  Returns:
    [M, F] in lhs's dtype.
  """
  return jax.lax.ragged_dot(lhs, rhs, group_sizes)
