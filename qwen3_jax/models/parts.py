"""What every sub-block is built from: a named parameter, RMSNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.models.config import ModelConfig

Axes = tuple[str, ...]


def normal_parameter(
  rngs: nnx.Rngs,
  config: ModelConfig,
  shape: tuple[int, ...],
  axes: Axes,
  std: float | None = None,
  compute_dtype: jnp.dtype | None = None,
) -> nnx.Param:
  """A Gaussian matrix, std `config.initializer_range` unless given, with the logical name of every axis.

  `compute_dtype`: that a layer casts it to; `config.dtype` unless given.
  """
  std = config.initializer_range if std is None else std
  value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
  return nnx.Param(value.astype(config.param_dtype), axes=axes, compute_dtype=compute_dtype or config.dtype)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis; the statistics in float32 (Zhang & Sennrich 2019)."""

  def __init__(self, config: ModelConfig, shape: tuple[int, ...], axes: Axes):
    self.epsilon = config.rms_norm_eps
    self.scale = nnx.Param(jnp.ones(shape, config.param_dtype), axes=axes, compute_dtype=config.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
    return (x32 * inverse_rms).astype(x.dtype) * self.scale[...].astype(x.dtype)
