"""Grouped matmul for CPUs: groups padded to whole blocks of rows, one batched matmul over blocks.

XLA's `ragged_dot` on a CPU multiplies every row by every group's matrix; this does each row once, at about the speed of
one dense matmul.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 64  # rows; larger blocks pad more, smaller ones copy the matrices more often


def _plan(group_sizes: jax.Array, M: int):
  """Where rows go. Returns each block's group [n], each row's place [M], and the row at each place [n * BLOCK] or M."""
  E = group_sizes.shape[0]
  group_sizes = group_sizes.at[-1].add(M - jnp.sum(group_sizes))  # the last group takes what is left
  n = -(-M // BLOCK) + E  # at most one block of a group is partly filled
  last_block = jnp.cumsum(-(-group_sizes // BLOCK))
  block_group = jnp.minimum(jnp.searchsorted(last_block, jnp.arange(n), side="right"), E - 1)
  last_row = jnp.cumsum(group_sizes)
  row_group = jnp.minimum(jnp.searchsorted(last_row, jnp.arange(M), side="right"), E - 1)
  first_block = last_block + (-group_sizes // BLOCK)
  place = first_block[row_group] * BLOCK + jnp.arange(M) - (last_row - group_sizes)[row_group]
  row = jnp.full(n * BLOCK, M, jnp.int32).at[place].set(jnp.arange(M, dtype=jnp.int32))
  return block_group, place, row


def _in_blocks(x: jax.Array, row: jax.Array) -> jax.Array:
  """[M, D] -> [n, BLOCK, D], zero where a block has no row."""
  padded = jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])
  return padded[row].reshape(-1, BLOCK, x.shape[1])


def _forward(lhs, rhs, group_sizes):
  block_group, place, row = _plan(group_sizes, lhs.shape[0])
  blocks = jnp.einsum("nbd,ndf->nbf", _in_blocks(lhs, row), rhs[block_group])
  return blocks.reshape(-1, rhs.shape[2])[place], (lhs, rhs, group_sizes)


def _backward(residuals, gradient):
  lhs, rhs, group_sizes = residuals
  block_group, place, row = _plan(group_sizes, lhs.shape[0])
  blocks = _in_blocks(gradient, row)
  to_lhs = jnp.einsum("nbf,ndf->nbd", blocks, rhs[block_group]).reshape(-1, lhs.shape[1])[place]
  by_block = jnp.einsum("nbd,nbf->ndf", _in_blocks(lhs, row), blocks)
  to_rhs = jax.ops.segment_sum(by_block, block_group, rhs.shape[0], indices_are_sorted=True)
  return to_lhs, to_rhs, None


@jax.custom_vjp
def grouped_matmul(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
  """As `api.grouped_matmul`."""
  return _forward(lhs, rhs, group_sizes)[0]


grouped_matmul.defvjp(_forward, _backward)
