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
