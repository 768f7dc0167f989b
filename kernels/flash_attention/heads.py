"""What the implementations share: padding, products in float32, and the head axes in front of the positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def padded(x: jax.Array, axis: int, multiple: int) -> jax.Array:
  """Zeros at the end of an axis, up to a multiple."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths) if widths[axis][1] else x


def by_head(x: jax.Array, K: int) -> jax.Array:
  """[B, T, N, ...] -> [B, K, G, T, ...]"""
  B, T, N = x.shape[:3]
  return jnp.moveaxis(x.reshape(B, T, K, N // K, *x.shape[3:]), 1, 3)


def by_position(x: jax.Array) -> jax.Array:
  """[B, K, G, T, ...] -> [B, T, N, ...]"""
  B, K, G, T = x.shape[:4]
  return jnp.moveaxis(x, 3, 1).reshape(B, T, K * G, *x.shape[4:])
