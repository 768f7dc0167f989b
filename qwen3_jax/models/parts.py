"""What every sub-block is built from: a named parameter, a linear map, RMSNorm."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.ordering import after
from qwen3_jax.models.config import ModelConfig

Axes = tuple[str, ...]


def normal_parameter(
  rngs: nnx.Rngs, config: ModelConfig, shape: tuple[int, ...], axes: Axes, std: float | None = None
) -> nnx.Param:
  """A Gaussian matrix, std `config.initializer_range` unless given, with the logical name of every axis."""
  std = config.initializer_range if std is None else std
  value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
  return nnx.Param(value.astype(config.param_dtype), axes=axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, matrix: jax.Array, release_input: bool = False) -> jax.Array:
  """x [B, T, *I] times matrix [*I, *O] -> [B, T, *O].

  With its own derivative: JAX's gives the matrix's gradient as a transposed product, for which XLA:CPU copies every
  activation into transposed order first (a quarter more time per step in a small model).

  `release_input`: the backward pass makes the matrix's gradient first, so that x is free before its own gradient needs
  as much memory; for a large x that nothing else reads.
  """
  return _linear_forward(x, matrix, release_input)[0]


def _linear_forward(x, matrix, release_input):
  inputs = tuple(range(x.ndim - 2))
  return jax.lax.dot_general(x, matrix, ((tuple(2 + i for i in inputs), inputs), ((), ()))), (x, matrix)


def _linear_backward(release_input, residuals, gradient):
  x, matrix = residuals
  matrix_gradient = jax.lax.dot_general(x, gradient, (((0, 1), (0, 1)), ((), ())))
  if release_input:
    gradient = after(gradient, matrix_gradient)
  outputs = tuple(range(gradient.ndim - 2))
  to_outputs = tuple(x.ndim - 2 + i for i in outputs)
  x_gradient = jax.lax.dot_general(gradient, matrix, ((tuple(2 + i for i in outputs), to_outputs), ((), ())))
  return x_gradient, matrix_gradient


linear.defvjp(_linear_forward, _linear_backward)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis; the statistics in float32 (Zhang & Sennrich 2019)."""

  def __init__(self, config: ModelConfig, shape: tuple[int, ...], axes: Axes):
    self.epsilon = config.rms_norm_eps
    self.scale = nnx.Param(jnp.ones(shape, config.param_dtype), axes=axes)

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
    return (x32 * inverse_rms).astype(x.dtype) * self.scale[...].astype(x.dtype)
