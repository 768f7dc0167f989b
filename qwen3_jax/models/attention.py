"""Grouped-query attention with QK-Norm (Qwen3 report, section 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.linear import linear
from qwen3_jax.models.parts import RMSNorm, normal_parameter
from qwen3_jax.models.rope import rotate
from qwen3_jax.sharding import constrain

# attend(query, key, value) -> (attended, what it keeps of them): of packed sequences, or on a cache.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

_QUERY = ("embed", "heads", "head_dim")
_KEY_VALUE = ("embed", "kv_heads", "head_dim")
_OUTPUT = ("attended", "hidden")


class Attention(nnx.Module):
  """Parameters stacked over L; the call works on one layer's slice."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    L, D, N, K, H = config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    self.dtype = config.dtype
    self.query = normal_parameter(rngs, config, (L, D, N, H), ("layers", *_QUERY))
    self.key = normal_parameter(rngs, config, (L, D, K, H), ("layers", *_KEY_VALUE))
    self.value = normal_parameter(rngs, config, (L, D, K, H), ("layers", *_KEY_VALUE))
    self.output = normal_parameter(rngs, config, (L, N * H, D), ("layers", *_OUTPUT))
    self.qk_norm = config.qk_norm
    if config.qk_norm:
      self.query_norm = RMSNorm(config, (L, H), ("layers", "head_dim"))
      self.key_norm = RMSNorm(config, (L, H), ("layers", "head_dim"))

  def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend) -> tuple[jax.Array, Any]:
    """x [B, T, D] -> ([B, T, D], what `attend` keeps); `attend` takes [B, T, N or K, H] and says what a token sees."""
    query = checkpoint_name(linear(x, self.query[...].astype(self.dtype), _QUERY), "query")
    key = checkpoint_name(linear(x, self.key[...].astype(self.dtype), _KEY_VALUE), "key")
    value = checkpoint_name(linear(x, self.value[...].astype(self.dtype), _KEY_VALUE), "value")
    if self.qk_norm:
      query, key = self.query_norm(query), self.key_norm(key)
    query = constrain(rotate(query, *rope), "batch", "length", "heads", "head_dim")
    key = constrain(rotate(key, *rope), "batch", "length", "kv_heads", "head_dim")
    value = constrain(value, "batch", "length", "kv_heads", "head_dim")
    attended, kept = attend(query, key, value)
    return linear(attended, self.output[...].astype(self.dtype), _OUTPUT), kept
