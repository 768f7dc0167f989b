"""Attention by cuDNN's fused kernels, on NVIDIA GPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_MOST_MASK_BYTES = 2**30  # of the mask of documents, which cuDNN reads as numbers [B, 1, T, T]


def supported(query: jax.Array) -> bool:
  """Whether cuDNN's kernels take queries [B, T, N, H] on the machine at hand."""
  B, T, _, H = query.shape
  half = query.dtype in (jnp.bfloat16, jnp.float16)
  small = H % 8 == 0 and H <= 128 and T > 1 and 2 * B * T * T <= _MOST_MASK_BYTES
  return half and small and jax.default_backend() == "gpu"


def attention(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """As `api.attention`."""
  same = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
  output = jax.nn.dot_product_attention(query, key, value, mask=same, is_causal=True, implementation="cudnn")
  return checkpoint_name(output, "attention_output")
