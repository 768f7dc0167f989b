"""An order that the compiler keeps."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def after(x: jax.Array, earlier: jax.Array) -> jax.Array:
  """`x`, which nothing can compute or move ahead of `earlier`: times 1, or NaN if the first element of that is NaN.

  XLA on TPU removes `optimization_barrier` before it moves code out of loops and before it schedules.
  """
  first = jax.lax.stop_gradient(earlier[(0,) * earlier.ndim])
  return x * jnp.where(jnp.isnan(first), jnp.nan, 1.0).astype(x.dtype)


@jax.custom_vjp
def late_gradient(x: jax.Array, later: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Both as they are. Nothing is done with the gradient of `x` before that of `later` is there."""
  return x, later


def _backward(_, gradients):
  to_x, to_later = gradients
  return after(to_x, to_later), to_later


late_gradient.defvjp(lambda x, later: ((x, later), None), _backward)
