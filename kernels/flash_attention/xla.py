"""Attention for any XLA backend: query blocks see only the keys before them; the backward pass recomputes weights.

Its own derivative, because on CPU the derivative that JAX makes is half as fast: the gradients of key and value are
computed transposed ([H, S], the layout in which XLA:CPU multiplies at full speed), and only the output and log-sum-exp
are kept (FlashAttention, Dao et al. 2022, algorithm 4).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.flash_attention.heads import by_head, by_position, dot
from kernels.flash_attention.pairs import Masks

_MIN_BLOCK, _MAX_BLOCK = 32, 512  # queries scored at a time
_BLOCKS = 4  # that many blocks skip 3/8 of the scores; more skip little and make smaller matmuls


def _blocks(T: int) -> list[tuple[int, int]]:
  size = min(max(-(-T // _BLOCKS), _MIN_BLOCK), _MAX_BLOCK)
  return [(start, min(start + size, T)) for start in range(0, T, size)]


def _rows(x: jax.Array, start: int, stop: int) -> jax.Array:
  """Queries start..stop of [B, K, G, T, H] as [B, K, G*t, H]: the group folds into the query axis."""
  B, K, G, _, H = x.shape
  return x[:, :, :, start:stop].reshape(B, K, G * (stop - start), H)


def _scores(query, key, segment_ids, start: int, stop: int, G: int) -> jax.Array:
  """Scaled and masked float32 scores [B, K, G, t, S] of a block on the keys before its end."""
  B, K, _, H = query.shape
  scores = (dot("bkqh,bksh->bkqs", query, key) * H**-0.5).reshape(B, K, G, stop - start, stop)
  causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
  visible = (segment_ids[:, start:stop, None] == segment_ids[:, None, :stop]) & causal
  return jnp.where(visible[:, None, None], scores, -jnp.inf)  # a token always sees itself


def forward(query, key, value, masks: Masks) -> tuple[jax.Array, jax.Array]:
  """As `blockwise.forward`, for keys of the queries' own positions: masks other than `query_segments` are not read."""
  B, T, N, H = query.shape
  segment_ids = masks.query_segments
  K = key.shape[2]
  G = N // K
  heads, keys, values = by_head(query, K), key.swapaxes(1, 2), value.swapaxes(1, 2)
  outputs, log_sums = [], []
  for start, stop in _blocks(T):
    scores = _scores(_rows(heads, start, stop), keys[:, :, :stop], segment_ids, start, stop, G)
    peak = jnp.max(scores, axis=-1, keepdims=True)
    exponentials = jnp.exp(scores - peak)
    normaliser = jnp.sum(exponentials, axis=-1, keepdims=True)
    weights = exponentials.astype(value.dtype).reshape(B, K, G * (stop - start), stop)
    output = dot("bkqs,bksh->bkqh", weights, values[:, :, :stop]).reshape(B, K, G, stop - start, H)
    outputs.append((output / normaliser).astype(query.dtype))
    log_sums.append((peak + jnp.log(normaliser))[..., 0])
  return by_position(jnp.concatenate(outputs, axis=3)), jnp.concatenate(log_sums, axis=3).reshape(B, N, T)


def backward(query, key, value, masks: Masks, log_sums, deltas, gradient) -> tuple[jax.Array, jax.Array, jax.Array]:
  """As `blockwise.backward`; masks as in `forward`."""
  B, T, N, H = query.shape
  segment_ids = masks.query_segments
  K = key.shape[2]
  G = N // K
  heads, keys, values = by_head(query, K), key.swapaxes(1, 2), value.swapaxes(1, 2)
  gradients = by_head(gradient, K)
  log_sums, deltas = (x.reshape(B, K, G, T) for x in (log_sums, deltas))
  query_gradients = []
  key_gradient = value_gradient = jnp.zeros((), jnp.float32)
  for start, stop in _blocks(T):
    block, block_gradient = _rows(heads, start, stop), _rows(gradients, start, stop)
    scores = _scores(block, keys[:, :, :stop], segment_ids, start, stop, G)
    probabilities = jnp.exp(scores - log_sums[:, :, :, start:stop, None])
    to_probabilities = dot("bkqh,bksh->bkqs", block_gradient, values[:, :, :stop]).reshape(scores.shape)
    to_scores = probabilities * (to_probabilities - deltas[:, :, :, start:stop, None])
    flat = (B, K, G * (stop - start), stop)
    probabilities = probabilities.astype(value.dtype).reshape(flat)
    to_scores = to_scores.astype(query.dtype).reshape(flat)
    query_gradients.append(dot("bkqs,bksh->bkqh", to_scores, keys[:, :, :stop]).reshape(B, K, G, stop - start, H))
    after = ((0, 0), (0, 0), (0, 0), (0, T - stop))
    key_gradient += jnp.pad(dot("bkqh,bkqs->bkhs", block, to_scores), after)
    value_gradient += jnp.pad(dot("bkqh,bkqs->bkhs", block_gradient, probabilities), after)
  query_gradient = by_position(jnp.concatenate(query_gradients, axis=3)) * H**-0.5
  return (
    query_gradient.astype(query.dtype),
    (jnp.moveaxis(key_gradient, 3, 1) * H**-0.5).astype(key.dtype),
    jnp.moveaxis(value_gradient, 3, 1).astype(value.dtype),
  )
