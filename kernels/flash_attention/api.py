"""Causal attention within packed documents."""

from __future__ import annotations

from collections.abc import Callable

import jax

from kernels.flash_attention import blockwise, cudnn, xla


def attention(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """Token t sees tokens s <= t of its segment; scores are scaled by H**-0.5; softmax in float32.

  Args:
    query: [B, T, N, H]; query head n uses key/value head n // (N // K).
    key, value: [B, T, K, H].
    segment_ids: int32 [B, T].

  Returns:
    [B, T, N, H] in query's dtype.
  """
  B, T, N, H = query.shape
  if key.shape != value.shape or key.shape[:2] != (B, T) or key.shape[3] != H or N % key.shape[2]:
    raise ValueError(f"attention: query {query.shape}, key {key.shape} and value {value.shape} do not fit")
  if segment_ids.shape != (B, T):
    raise ValueError(f"attention: segment_ids {segment_ids.shape}, expected {(B, T)}")
  implementations: dict[str, Callable[..., jax.Array]] = {"cpu": xla.attention, "default": blockwise.causal_attention}
  if cudnn.supported(query):
    implementations["cuda"] = cudnn.attention
  return jax.lax.platform_dependent(query, key, value, segment_ids, **implementations)
