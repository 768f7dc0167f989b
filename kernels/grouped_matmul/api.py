"""Rows sorted by group times each group's matrix."""

from __future__ import annotations

import jax

from kernels.grouped_matmul import blocked


def grouped_matmul(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
  """Row i of lhs times the matrix of its group. `blocked` on a CPU, XLA's `ragged_dot` elsewhere.

  Args:
    lhs: [M, D], rows sorted by group.
    rhs: [E, D, F].
    group_sizes: int32 [E], summing to at most M; groups may be empty.

  Returns:
    [M, F] in lhs's dtype. Rows after the last group are arbitrary, as is their gradient; a gradient of theirs that is
    zero adds nothing to that of rhs.
  """
  if lhs.ndim != 2 or rhs.ndim != 3 or lhs.shape[1] != rhs.shape[1] or group_sizes.shape != rhs.shape[:1]:
    raise ValueError(f"grouped_matmul: lhs {lhs.shape}, rhs {rhs.shape}, group_sizes {group_sizes.shape} do not fit")
  return jax.lax.platform_dependent(
    lhs, rhs, group_sizes, cpu=blocked.grouped_matmul, default=lambda *arguments: jax.lax.ragged_dot(*arguments)
  )
