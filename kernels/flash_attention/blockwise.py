"""Attention for any XLA backend, one pair of a query block and a key block at a time, under a scan.

Memory is a pair's scores whatever the length, and the code does not grow with it. Pairs above the diagonal are not in
the table of pairs, so no score is computed that the causal mask would hide, but for those of a diagonal block. The
backward pass recomputes weights from the log-sum-exp (FlashAttention-2, Dao 2023, algorithms 1 and 2).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from kernels.flash_attention.heads import by_head, by_position, dot

_MIN_BLOCK, _MAX_BLOCK = 8, 512
_SCORE_BYTES = 64 * 2**20  # float32 scores of one pair
_HIDDEN = -1e30  # finite: a row of a block may see none of its keys yet


def block_size(length: int, rows: int) -> int:
  """A power of two that divides `length` and keeps the scores of a pair, `rows` (B * N) times its square, small."""
  size = math.gcd(length, _MAX_BLOCK)
  while size > _MIN_BLOCK and 4 * rows * size * size > _SCORE_BYTES:
    size //= 2
  return size


def causal_pairs(blocks: int) -> np.ndarray:
  """[P, 2]: query block, key block, for queries and keys of the same positions; by query block."""
  return np.stack(np.tril_indices(blocks), axis=1).astype(np.int32)


def _slice(x: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis)


def _put(x: jax.Array, part: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), block * size, axis)


def _scores(query, key, visible) -> jax.Array:
  """query [B, K, G, t, H], key [B, K, s, H], visible [B, t, s] -> masked float32 scores [B, K, G, t, s]."""
  scores = dot("bkgqh,bksh->bkgqs", query, key) * query.shape[-1] ** -0.5
  return jnp.where(visible[:, None, None], scores, _HIDDEN)


def _visible(pair, query_order, query_segments, key_segments, block: int) -> jax.Array:
  i, j = pair
  causal = _slice(query_order, i, block, 0)[:, None] >= j * block + jnp.arange(block)[None, :]
  same = _slice(query_segments, i, block, 1)[:, :, None] == _slice(key_segments, j, block, 1)[:, None, :]
  return same & causal


def _forward(query, key, value, query_segments, key_segments, query_order, pairs, block):
  B, T, N, H = query.shape
  K = key.shape[2]
  G = N // K
  queries, keys, values = by_head(query, K), key.swapaxes(1, 2), value.swapaxes(1, 2)

  def step(carry, pair):
    peak, total, sums, outputs, log_sums = carry
    i, j = pair
    q, k, v = _slice(queries, i, block, 3), _slice(keys, j, block, 2), _slice(values, j, block, 2)
    q, pair = jax.lax.optimization_barrier((q, pair))  # else the masks of all pairs are made ahead, and kept
    first = j == 0  # the pairs of a query block start with the first key block
    peak, total, sums = jnp.where(first, _HIDDEN, peak), jnp.where(first, 0.0, total), jnp.where(first, 0.0, sums)
    scores = _scores(q, k, _visible(pair, query_order, query_segments, key_segments, block))
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    exponentials = jnp.exp(scores - new_peak[..., None])
    rescale = jnp.exp(peak - new_peak)
    total = total * rescale + jnp.sum(exponentials, axis=-1)
    sums = sums * rescale[..., None] + dot("bkgqs,bksh->bkgqh", exponentials.astype(v.dtype), v)
    outputs = _put(outputs, sums / total[..., None], i, block, 3)  # the last write of a block stays
    log_sums = _put(log_sums, new_peak + jnp.log(total), i, block, 3)
    return (new_peak, total, sums, outputs, log_sums), None

  rows = jnp.zeros((B, K, G, block), jnp.float32)
  start = (rows, rows, jnp.zeros((*rows.shape, H), jnp.float32), jnp.zeros_like(queries))
  (*_, outputs, log_sums), _ = jax.lax.scan(
    step, (*start, jnp.zeros((B, K, G, T), jnp.float32)), (pairs[:, 0], pairs[:, 1])
  )
  # Named, so that a remat policy can keep what the backward pass reads.
  output = checkpoint_name(by_position(outputs), "attention_output")
  log_sums = checkpoint_name(log_sums, "attention_output")
  return output, (query, key, value, query_segments, key_segments, query_order, pairs, output, log_sums)


def _backward(block, residuals, output_gradient):
  query, key, value, query_segments, key_segments, query_order, pairs, output, log_sums = residuals
  K, H = key.shape[2:]
  queries, keys, values = by_head(query, K), key.swapaxes(1, 2), value.swapaxes(1, 2)
  # Row sums of probability times its gradient: [B, K, G, T].
  deltas = by_head(jnp.sum(output_gradient.astype(jnp.float32) * output.astype(jnp.float32), axis=-1), K)
  gradients = by_head(output_gradient, K)

  def step(carry, pair):
    query_block, query_gradients, key_gradients, value_gradients = carry
    i, j = pair
    q, k, v = _slice(queries, i, block, 3), _slice(keys, j, block, 2), _slice(values, j, block, 2)
    gradient = _slice(gradients, i, block, 3)
    q, pair = jax.lax.optimization_barrier((q, pair))
    scores = _scores(q, k, _visible(pair, query_order, query_segments, key_segments, block))
    probabilities = jnp.exp(scores - _slice(log_sums, i, block, 3)[..., None])
    to_probabilities = dot("bkgqh,bksh->bkgqs", gradient, v)
    to_scores = (probabilities * (to_probabilities - _slice(deltas, i, block, 3)[..., None]) * H**-0.5).astype(q.dtype)
    query_block = jnp.where(j == 0, 0.0, query_block) + dot("bkgqs,bksh->bkgqh", to_scores, k)
    query_gradients = _put(query_gradients, query_block, i, block, 3)
    to_key = dot("bkgqs,bkgqh->bksh", to_scores, q)
    to_value = dot("bkgqs,bkgqh->bksh", probabilities.astype(gradient.dtype), gradient)
    key_gradients = _put(key_gradients, _slice(key_gradients, j, block, 2) + to_key, j, block, 2)
    value_gradients = _put(value_gradients, _slice(value_gradients, j, block, 2) + to_value, j, block, 2)
    return (query_block, query_gradients, key_gradients, value_gradients), None

  query_block = jnp.zeros((*queries.shape[:3], block, H), jnp.float32)
  zeros = jnp.zeros(keys.shape, jnp.float32)
  carry = (query_block, jnp.zeros_like(queries), zeros, zeros)
  (_, query_gradients, key_gradients, value_gradients), _ = jax.lax.scan(step, carry, (pairs[:, 0], pairs[:, 1]))
  as_given = lambda x, like: x.swapaxes(1, 2).astype(like.dtype)
  to_query = by_position(query_gradients)
  return to_query, as_given(key_gradients, key), as_given(value_gradients, value), None, None, None, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def attention(query, key, value, query_segments, key_segments, query_order, pairs, block):
  """Attention of queries [B, T, N, H] on keys and values [B, S, K, H] -> [B, T, N, H].

  Args:
    query_segments, key_segments: int32 [B, T] and [B, S]; a query sees the keys of its segment
    query_order: int32 [T], ascending within a block: a query sees the keys up to that index.
    pairs: int32 [P, 2], query block and key block, by query block and from key block 0 on: all that the masks leave.
    block: length of a block, which divides T and S.
  """
  return _forward(query, key, value, query_segments, key_segments, query_order, pairs, block)[0]


attention.defvjp(_forward, _backward)


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """As `reference.attention`."""
  B, T, N, _ = query.shape
  padding = -T % _MIN_BLOCK
  if padding:
    pad = lambda x: jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
    query, key, value, segment_ids = (pad(x) for x in (query, key, value, segment_ids))
  block = block_size(T + padding, B * N)
  pairs = jnp.asarray(causal_pairs((T + padding) // block))
  order = jnp.arange(T + padding, dtype=jnp.int32)
  return attention(query, key, value, segment_ids, segment_ids, order, pairs, block)[:, :T]
