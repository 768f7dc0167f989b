"""Fingerprints of arrays that do not depend on how they are sharded: they tell a damaged checkpoint from a good one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprints(tree: Any) -> list[int]:
  """A 32-bit number for each array of `tree`, in its order, from the bits and the place of every element.

  A change of any one element always changes it; other damage goes unseen once in 2^32. Computed where the arrays are;
  with several processes, all must call it and all get the same.
  """
  leaves = jax.tree.leaves(tree)
  shardings = (leaf.sharding for leaf in leaves if isinstance(leaf.sharding, NamedSharding))
  meshes = (sharding.mesh for sharding in shardings)
  mesh = next(meshes, None)
  whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  return [int(value) for value in np.asarray(_compiled(whole)(leaves))]


@functools.cache
def _compiled(sharding: Sharding | None):
  return jax.jit(lambda leaves: jnp.stack([_fingerprint(x) for x in leaves]), out_shardings=sharding)


def _fingerprint(x: jax.Array) -> jax.Array:
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  # MurmurHash3's finalizer. Every step is one-to-one in `bits` (odd factors, shifted xors), so that a changed element
  # changes the sum.
  mixed = (bits ^ jnp.uint32(0x9E3779B9)) * (2 * index + 1)
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)  # wraps: the order of the sum does not matter
