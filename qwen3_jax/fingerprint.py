"""Fingerprints of arrays that do not depend on how they are sharded: they tell a damaged checkpoint from a good one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

_BLOCK = 1 << 20  # elements that the host works on at a time


def fingerprints(tree: Any) -> list[int]:
  """A 32-bit number for each array of `tree`, in its order, from the bits and the place of every element.

  A change of any one element always changes it; other damage goes unseen once in 2^32. Computed where the arrays are;
  with several processes, all must call it and all get the same.
  """
  leaves = [_plain(leaf) for leaf in jax.tree.leaves(tree)]
  if not leaves:
    return []
  if all(leaf.is_fully_addressable and next(iter(leaf.devices())).platform == "cpu" for leaf in leaves):
    return [_on_host(leaf) for leaf in leaves]  # compiling for a CPU would take a hundred times as long
  shardings = (leaf.sharding for leaf in leaves if isinstance(leaf.sharding, NamedSharding))
  mesh = next((sharding.mesh for sharding in shardings), None)
  whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  return [int(value) for value in np.asarray(_compiled(whole)(leaves))]


def _plain(x: jax.Array) -> jax.Array:
  return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@functools.cache
def _compiled(sharding: Sharding | None):
  return jax.jit(lambda leaves: jnp.stack([fingerprint_on_device(x) for x in leaves]), out_shardings=sharding)


@jax.jit
def fingerprint_on_device(x: jax.Array) -> jax.Array:
  """The fingerprint of one array as uint32 [] on its devices, for whoever does not want to wait for it."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  return jnp.sum(_mixed(bits, place), dtype=jnp.uint32)


def _on_host(x: jax.Array) -> int:
  total = 0
  for shard in x.addressable_shards:
    if shard.replica_id == 0 and shard.data.size:
      starts = [axis.start or 0 for axis in shard.index]
      total += _of_box(np.asarray(shard.data), starts, x.shape)
  return total % 2**32


def _of_box(values: np.ndarray, starts: list[int], shape: tuple[int, ...]) -> int:
  """The share of the box `values`, whose first element is at `starts` of an array of `shape`."""
  if values.ndim == 0:
    values, starts, shape = values[None], [0], (1,)
  values = values.view(f"uint{8 * values.dtype.itemsize}")
  rows = max(1, _BLOCK * values.shape[0] // values.size)
  total = 0
  for first in range(0, values.shape[0], rows):
    block = values[first : first + rows]
    place = np.zeros((1,) * block.ndim, np.uint32)
    for axis, start in enumerate([starts[0] + first, *starts[1:]]):
      along = np.arange(start, start + block.shape[axis], dtype=np.uint32)
      place = place * np.uint32(shape[axis]) + along.reshape([-1 if i == axis else 1 for i in range(block.ndim)])
    total += int(np.sum(_mixed(block.astype(np.uint32), place), dtype=np.uint32))
  return total


def _mixed(bits, place):
  """MurmurHash3's finalizer of each element; their sum wraps, so its order does not matter.

  Every step is one-to-one in `bits` (odd factors, shifted xors), so that a changed element changes the sum.
  """
  mixed = (bits ^ np.uint32(0x9E3779B9)) * (place * np.uint32(2) + np.uint32(1))
  mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return mixed ^ (mixed >> np.uint32(16))
