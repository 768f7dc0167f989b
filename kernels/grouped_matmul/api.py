"""Rows sorted by group times each group's matrix."""

from __future__ import annotations

import jax

from kernels.grouped_matmul import blocked, pallas_tpu


def grouped_matmul(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
  """Row i of lhs times the matrix of its group.

  A Pallas kernel on TPU, `blocked` on a CPU, XLA's `ragged_dot` elsewhere.

  Args:
    lhs: [M, D], rows sorted by group.
    rhs: [E, D, F].
    group_sizes: int32 [E], summing to at most M; groups may be empty.

  Returns:
    [M, F] in lhs's dtype. Rows after the last group are arbitrary, as is their gradient; a gradient of theirs that is
    zero adds nothing to that of rhs.
  """
  _check(lhs, rhs, group_sizes)
  return jax.lax.platform_dependent(
    lhs, rhs, group_sizes, cpu=blocked.grouped_matmul, tpu=pallas_tpu.grouped_matmul, default=_ragged_dot
  )


def gated(lhs: jax.Array, gate: jax.Array, up: jax.Array, group_sizes: jax.Array) -> jax.Array:
  """silu(lhs @ gate) * (lhs @ up) by group: on TPU one kernel, which writes neither product.

  For a forward pass whose derivative is written out: none is defined on TPU. Arguments and result as in
  `grouped_matmul`.
  """
  _check(lhs, gate, group_sizes)
  if gate.shape != up.shape:
    raise ValueError(f"gated: gate {gate.shape} and up {up.shape} differ")

  def by_products(lhs, gate, up, group_sizes):
    return jax.nn.silu(grouped_matmul(lhs, gate, group_sizes)) * grouped_matmul(lhs, up, group_sizes)

  return jax.lax.platform_dependent(lhs, gate, up, group_sizes, tpu=pallas_tpu.gated, default=by_products)


def _check(lhs, rhs, group_sizes) -> None:
  if lhs.ndim != 2 or rhs.ndim != 3 or lhs.shape[1] != rhs.shape[1] or group_sizes.shape != rhs.shape[:1]:
    raise ValueError(f"grouped_matmul: lhs {lhs.shape}, rhs {rhs.shape}, group_sizes {group_sizes.shape} do not fit")


def _ragged_dot(lhs, rhs, group_sizes):
  return jax.lax.ragged_dot(lhs, rhs, group_sizes)
