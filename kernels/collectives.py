"""Gathering and scattering over several mesh axes, one after the other: what TPUs do best.

Over two axes at once XLA on TPU makes an all-reduce of the whole array of either. The bytes sent are the same: what
moves over the other axes is the smaller for it. Over an axis of one device XLA on CPUs would copy the array: it is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax


def all_gather(x: jax.Array, axes: Sequence[str], dimension: int) -> jax.Array:
  """Under `shard_map`: the parts of `x` along `dimension`, which is split over `axes` in that order, put together."""
  for axis in reversed(_several(axes)):
    x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True)
  return x


def reduce_scatter(x: jax.Array, axes: Sequence[str], dimension: int) -> jax.Array:
  """Under `shard_map`: the sum of `x` over `axes`, of which each shard gets its part along `dimension`."""
  for axis in _several(axes):
    x = jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)
  return x


def all_reduce(x: jax.Array, axes: Sequence[str]) -> jax.Array:
  """Under `shard_map`: the sum of `x` over `axes`."""
  axes = _several(axes)
  return jax.lax.psum(x, tuple(axes)) if axes else x


def _several(axes: Sequence[str]) -> list[str]:
  """The axes of several devices."""
  return [axis for axis in axes if jax.lax.axis_size(axis) > 1]
