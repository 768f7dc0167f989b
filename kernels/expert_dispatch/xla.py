"""Dispatch by XLA's gather and scatter, where there is no kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def permute(x: jax.Array, index: jax.Array) -> jax.Array:
  """As `api.permute`."""
  return x.at[_positive(index, x.shape[0])].get(mode="fill", fill_value=0)


def combine(rows: jax.Array, index: jax.Array, weights: jax.Array, T: int) -> jax.Array:
  """As `api.combine`."""
  total = jnp.zeros((T, rows.shape[1]), jnp.float32)
  weighted = weights[:, None] * rows.astype(jnp.float32)
  return total.at[_positive(index, T)].add(weighted, mode="drop").astype(rows.dtype)


def _positive(index: jax.Array, T: int) -> jax.Array:
  return jnp.where(index < 0, T, index)  # a negative index would count from the end
