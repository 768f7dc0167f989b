"""Fingerprints of arrays that do not depend on how they are sharded: they tell a damaged checkpoint from a good one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit
def fingerprints(tree: Any) -> jax.Array:
  """uint32, one for each array of `tree` in its order, from the bits and the place of every element."""
  return jnp.stack([_fingerprint(x) for x in jax.tree.leaves(tree)])


def _fingerprint(x: jax.Array) -> jax.Array:
  bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  mixed = (bits ^ jnp.uint32(0x9E3779B9)) * (2 * index + 1)  # an odd factor, so that no bit is lost
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA6B)
  return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)  # wraps: the order of the sum does not matter
