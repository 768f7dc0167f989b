"""The oracle: attention written out, softmax in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """Causal, within segments. query [B, T, N, H], key/value [B, T, K, H], segment_ids [B, T] -> [B, T, N, H]."""
  B, T, N, H = query.shape
  K = key.shape[2]
  grouped = query.reshape(B, T, K, N // K, H)
  scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32) * H**-0.5
  visible = (segment_ids[:, :, None] == segment_ids[:, None, :]) & jnp.tril(jnp.ones((T, T), bool))
  scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bkgts,bskh->btkgh", weights, value).reshape(B, T, N, H)
