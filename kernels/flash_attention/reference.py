"""The oracle: attention written out, softmax in the scores' precision, at least float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """Causal, within segments. query [B, T, N, H], key/value [B, T, K, H], segment_ids [B, T] -> [B, T, N, H]."""
  return attention_with_log_sums(query, key, value, segment_ids, segment_ids, jnp.arange(query.shape[1]))[0]


def attention_with_log_sums(query, key, value, query_segments, key_segments, query_order):
  """query [B, T, N, H], key/value [B, S, K, H], segments [B, T], [B, S], order [T] -> [B, T, N, H], [B, N, T].

  Query t sees the keys s <= order[t] of its segment, of which there is at least one.
  """
  B, T, N, H = query.shape
  S, K = key.shape[1:3]
  grouped = query.reshape(B, T, K, N // K, H)
  precise = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=precise) * H**-0.5
  visible = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_order[:, None] >= jnp.arange(S))
  scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  output = jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(B, T, N, H)
  return output, jax.nn.logsumexp(scores, axis=-1).reshape(B, N, T)
