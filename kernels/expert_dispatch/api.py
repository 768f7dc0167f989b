"""Rows of tokens, in the order of the experts that they go to; and results, back in the order of tokens.

Pallas kernels on TPU, XLA's gather and scatter elsewhere and for what the kernels do not take: dtypes other than
float32 and bfloat16, columns that do not fill 32-bit lanes (D no multiple of 128, in bfloat16 of 256), rows that do not
fill groups (R no multiple of `GROUP`), and more tokens than VMEM holds a few columns of. No derivative is defined on
TPU: both are for passes whose derivative is written out.

How tokens get to other devices is in qwen3_jax/models/expert_parallel.py, and is not a kernel: the compiler schedules
gathers and scatters beside kernels by itself (tests/compilation/test_overlap.py), where its ragged all-to-all blocks.
Up to 8 shards, as many as a token has experts, they send no more than an all-to-all of a token's slots.
"""

from __future__ import annotations

import functools

import jax

from kernels.expert_dispatch import pallas_tpu, xla

GROUP = pallas_tpu.GROUP  # rows that `combine` adds at once


def permute(x: jax.Array, index: jax.Array) -> jax.Array:
  """x [T, D], index int32 [R] -> [R, D]: row i is x[index[i]], or zeros where the index is outside of 0..T - 1."""
  if not pallas_tpu.supported(x.shape[0], index.shape[0], x.shape[1], x.dtype):
    return xla.permute(x, index)
  return jax.lax.platform_dependent(x, index, tpu=pallas_tpu.permute, default=xla.permute)


def combine(rows: jax.Array, index: jax.Array, weights: jax.Array, T: int) -> jax.Array:
  """The weighted sum of the rows of each token, in float32, rounded to the dtype of rows.

  Args:
    rows: [R, D]; where the index is outside of 0..T - 1 a row is not used, whatever it holds.
    index: int32 [R]: the token that a row is added to. Each `GROUP` of rows, counted from the first, holds a token at
      most once.
    weights: float32 [R].
    T: tokens.

  Returns:
    [T, D]: row t is the sum of weights[i] * rows[i] over all i with index[i] == t.
  """
  if not pallas_tpu.supported(T, rows.shape[0], rows.shape[1], rows.dtype):
    return xla.combine(rows, index, weights, T)
  kernel, default = (functools.partial(implementation.combine, T=T) for implementation in (pallas_tpu, xla))
  return jax.lax.platform_dependent(rows, index, weights, tpu=kernel, default=default)
