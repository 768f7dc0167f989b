"""Attention for any XLA backend: query blocks see only the keys before them, and blocks are recomputed in the backward pass."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

BLOCK = 512  # queries scored at a time


@functools.partial(jax.checkpoint, static_argnums=(5,))
def _block(query, key, value, query_segments, key_segments, start: int):
  """Queries [B, K, G, t, H], the first of which is row `start`, on keys [B, K, S, H] from row 0."""
  B, K, G, t, H = query.shape
  S = key.shape[2]
  # The group folds into the query axis: one matmul per key/value head.
  scores = jnp.einsum("bkqh,bksh->bkqs", query.reshape(B, K, G * t, H), key, preferred_element_type=jnp.float32)
  causal = start + jnp.arange(t)[:, None] >= jnp.arange(S)[None, :]
  visible = (query_segments[:, :, None] == key_segments[:, None, :]) & causal
  scores = jnp.where(visible[:, None, None], scores.reshape(B, K, G, t, S) * H**-0.5, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype).reshape(B, K, G * t, S)
  return jnp.einsum("bkqs,bksh->bkqh", weights, value).reshape(B, K, G, t, H)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """As `reference.attention`, never holding more than BLOCK rows of scores."""
  B, T, N, H = query.shape
  K = key.shape[2]
  query = query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
  blocks = []
  for start in range(0, T, BLOCK):
    stop = min(start + BLOCK, T)
    blocks.append(
      _block(
        query[:, :, :, start:stop],
        key[:, :, :stop],
        value[:, :, :stop],
        segment_ids[:, start:stop],
        segment_ids[:, :stop],
        start,
      )
    )
  return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
