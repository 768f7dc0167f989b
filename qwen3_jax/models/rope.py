"""Rotary position embedding (Su et al. 2021) with YaRN (Peng et al. 2023, section 3.4)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.models.config import ModelConfig

# YaRN interpolates pairs that turn fewer than SLOW times over the original length and keeps those above FAST.
_FAST_TURNS, _SLOW_TURNS = 32.0, 1.0


def inverse_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
  """Angular frequencies [H/2] (float32) and the factor on cos and sin.

  The factor, 0.1 ln(yarn_factor) + 1, is YaRN's attention temperature; 1 without YaRN.
  """
  H = config.head_dim
  exponents = np.arange(0, H, 2, dtype=np.float64) / H
  plain = config.rope_theta**-exponents
  if config.yarn_factor == 1.0:
    return plain.astype(np.float32), 1.0

  def dimension(turns: float) -> float:  # the pair that turns so often over the original length
    length = config.yarn_original_length
    return H * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

  low = max(math.floor(dimension(_FAST_TURNS)), 0)
  high = min(math.ceil(dimension(_SLOW_TURNS)), H - 1)
  ramp = np.clip((np.arange(H // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
  mixed = plain / config.yarn_factor * ramp + plain * (1.0 - ramp)
  return mixed.astype(np.float32), 0.1 * math.log(config.yarn_factor) + 1.0


def rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """cos and sin, float32 [B, T, H/2], for `positions` [B, T]."""
  frequencies, scale = inverse_frequencies(config)
  angles = positions.astype(jnp.float32)[..., None] * frequencies
  return _computed_once(jnp.cos(angles) * scale), _computed_once(jnp.sin(angles) * scale)


def _computed_once(x: jax.Array) -> jax.Array:
  """x, which XLA for CPU else computes again for the queries and the keys of every unrolled layer.

  That takes 8% of a training step of a small model. It fuses nothing into a product, and removes barriers before it
  fuses; times the identity x stays the same to the bit.
  """
  return jax.lax.platform_dependent(x, cpu=lambda x: x @ jnp.eye(x.shape[-1]), default=lambda x: x)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates x [B, T, heads, H]; dimension i pairs with i + H/2. Computed in float32, returned in x's dtype."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
