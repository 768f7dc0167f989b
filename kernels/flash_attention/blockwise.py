"""Attention for any XLA backend, one pair of a query block and a key block at a time, in a loop.

Memory is a pair's scores whatever the length, and the code does not grow with it. Pairs that the masks hide in every
sequence of the batch are not in the table of pairs. The backward pass recomputes weights from the log-sum-exp
(FlashAttention-2, Dao 2023, algorithms 1 and 2).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kernels.flash_attention.heads import by_head, by_position, dot, padded
from kernels.flash_attention.pairs import FIRST, KeyRanges, Masks, key_block_of, key_ranges, query_block_of, table

_MIN_BLOCK, _MAX_BLOCK = 8, 512
_SCORE_BYTES = 64 * 2**20  # float32 scores of one pair
_HIDDEN = -1e30  # finite: a row of a block may see none of its keys yet


def _block_size(T: int, S: int, rows: int) -> int:
  """A power of two that divides T and S and keeps the scores of a pair, `rows` (B * N) times its square, small."""
  size = math.gcd(T, S, _MAX_BLOCK)
  while size > _MIN_BLOCK and 4 * rows * size * size > _SCORE_BYTES:
    size //= 2
  return size


def _operands(query, key, value, masks: Masks):
  """Heads first and lengths padded, masks, block size and the table of pairs, one for all sequences."""
  B, _, N, _ = query.shape
  K = key.shape[2]
  # Queries added at the end see the first key at most; keys added there come after all that a query sees.
  masks = Masks(*(padded(x, -1, _MIN_BLOCK) for x in masks))
  heads = (
    by_head(padded(query, 1, _MIN_BLOCK), K),
    padded(key, 1, _MIN_BLOCK).swapaxes(1, 2),
    padded(value, 1, _MIN_BLOCK).swapaxes(1, 2),
  )
  block = _block_size(heads[0].shape[3], heads[1].shape[2], B * N)
  first, last, whole = key_ranges(masks, block, block)
  pairs = table(KeyRanges(first.min(0, keepdims=True), last.max(0, keepdims=True), whole[:1]))
  return *heads, masks, block, (pairs.entries[0], pairs.longest)


def _slice(x: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis)


def _put(x: jax.Array, part: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), block * size, axis)


def _scores(query, key, visible) -> jax.Array:
  """query [B, K, G, t, H], key [B, K, s, H], visible [B, t, s] -> masked float32 scores [B, K, G, t, s]."""
  scores = dot("bkgqh,bksh->bkgqs", query, key) * query.shape[-1] ** -0.5
  return jnp.where(visible[:, None, None], scores, _HIDDEN)


def _visible(masks: Masks, i: jax.Array, j: jax.Array, block: int) -> jax.Array:
  causal = _slice(masks.query_order, i, block, 0)[:, None] >= j * block + jnp.arange(block)[None, :]
  same = _slice(masks.query_segments, i, block, 1)[:, :, None] == _slice(masks.key_segments, j, block, 1)[:, None, :]
  return same & causal


def forward(query, key, value, masks: Masks) -> tuple[jax.Array, jax.Array]:
  """query [B, T, N, H], key, value [B, S, K, H] -> output [B, T, N, H], log-sum-exp of scores float32 [B, N, T].

  A query that sees no key gets a log-sum-exp below -1e28 and a finite output without meaning.
  """
  B, T, N, H = query.shape
  queries, keys, values, masks, block, (entries, count) = _operands(query, key, value, masks)

  def step(pair, carry):
    peak, total, sums, outputs, log_sums = carry
    entry = entries[pair]
    i, j, first = query_block_of(entry), key_block_of(entry), (entry & FIRST) != 0
    q, k, v = _slice(queries, i, block, 3), _slice(keys, j, block, 2), _slice(values, j, block, 2)
    peak, total, sums = jnp.where(first, _HIDDEN, peak), jnp.where(first, 0.0, total), jnp.where(first, 0.0, sums)
    scores = _scores(q, k, _visible(masks, i, j, block))
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    exponentials = jnp.exp(scores - new_peak[..., None])
    rescale = jnp.exp(peak - new_peak)
    total = total * rescale + jnp.sum(exponentials, axis=-1)
    sums = sums * rescale[..., None] + dot("bkgqs,bksh->bkgqh", exponentials.astype(v.dtype), v)
    outputs = _put(outputs, sums / total[..., None], i, block, 3)  # the last write of a block stays
    log_sums = _put(log_sums, new_peak + jnp.log(total), i, block, 3)
    return new_peak, total, sums, outputs, log_sums

  rows = jnp.zeros((*queries.shape[:3], block), jnp.float32)
  start = (rows, rows, jnp.zeros((*rows.shape, H), jnp.float32), jnp.zeros_like(queries))
  *_, outputs, log_sums = jax.lax.fori_loop(0, count, step, (*start, jnp.zeros(queries.shape[:4], jnp.float32)))
  return by_position(outputs)[:, :T], log_sums.reshape(B, N, -1)[:, :, :T]


def backward(query, key, value, masks: Masks, log_sums, deltas, gradient) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of query, key and value, for `gradient` of the output.

  deltas: float32 [B, N, T], the sum of gradient times output over H, less the gradient of the log-sum-exp.
  """
  T, H = query.shape[1], query.shape[3]
  S, K = key.shape[1:3]
  queries, keys, values, masks, block, (entries, count) = _operands(query, key, value, masks)
  gradients = by_head(padded(gradient, 1, _MIN_BLOCK), K)
  log_sums, deltas = (padded(x, 2, _MIN_BLOCK).reshape(queries.shape[:4]) for x in (log_sums, deltas))

  def step(pair, carry):
    query_block, query_gradients, key_gradients, value_gradients = carry
    entry = entries[pair]
    i, j, first = query_block_of(entry), key_block_of(entry), (entry & FIRST) != 0
    q, k, v = _slice(queries, i, block, 3), _slice(keys, j, block, 2), _slice(values, j, block, 2)
    gradient = _slice(gradients, i, block, 3)
    scores = _scores(q, k, _visible(masks, i, j, block))
    probabilities = jnp.exp(scores - _slice(log_sums, i, block, 3)[..., None])
    to_probabilities = dot("bkgqh,bksh->bkgqs", gradient, v)
    to_scores = (probabilities * (to_probabilities - _slice(deltas, i, block, 3)[..., None]) * H**-0.5).astype(q.dtype)
    query_block = jnp.where(first, 0.0, query_block) + dot("bkgqs,bksh->bkgqh", to_scores, k)
    query_gradients = _put(query_gradients, query_block, i, block, 3)
    to_key = dot("bkgqs,bkgqh->bksh", to_scores, q)
    to_value = dot("bkgqs,bkgqh->bksh", probabilities.astype(gradient.dtype), gradient)
    key_gradients = _put(key_gradients, _slice(key_gradients, j, block, 2) + to_key, j, block, 2)
    value_gradients = _put(value_gradients, _slice(value_gradients, j, block, 2) + to_value, j, block, 2)
    return query_block, query_gradients, key_gradients, value_gradients

  query_block = jnp.zeros((*queries.shape[:3], block, H), jnp.float32)
  zeros = jnp.zeros(keys.shape, jnp.float32)
  carry = (query_block, jnp.zeros_like(queries), zeros, zeros)
  _, query_gradients, key_gradients, value_gradients = jax.lax.fori_loop(0, count, step, carry)
  as_given = lambda x, like: x.swapaxes(1, 2)[:, :S].astype(like.dtype)
  return by_position(query_gradients)[:, :T], as_given(key_gradients, key), as_given(value_gradients, value)
