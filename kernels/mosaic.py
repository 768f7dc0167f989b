"""What Pallas kernels for TPU share."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from kernels import chip

LANES = 128
LOG2_E = math.log2(math.e)
HIDDEN = -1e30  # a score that a mask hides; finite: a row may have seen nothing yet


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """Product of two matrices over the given axis of each, in float32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def parameters(
  *semantics: pltpu.GridDimensionSemantics, vmem_share: float = 0.5, disable_bounds_checks: bool = False
) -> pltpu.CompilerParams:
  """`vmem_share` is the part of VMEM that a kernel may use; of some kernels the compiler refuses more than half."""
  return pltpu.CompilerParams(
    dimension_semantics=semantics,
    vmem_limit_bytes=int(vmem_share * chip.core().vmem_bytes),
    disable_bounds_checks=disable_bounds_checks,
  )


def strips(rows: int, strip: int) -> list[slice]:
  return [slice(start, start + strip) for start in range(0, rows, strip)]


def column(x: jax.Array) -> jax.Array:
  """[1, n] -> [n, lanes], every lane alike."""
  return jnp.broadcast_to(x, (LANES, x.shape[1])).T


def across(column: jax.Array, n: int) -> jax.Array:
  """[m, lanes], every lane alike -> [m, n]"""
  return jnp.tile(column, (1, n // LANES))


def over_lanes(x: jax.Array, combine) -> jax.Array:
  """[m, n] -> [m, lanes]: lanes combined with those that lie a multiple of the lanes further, in a tree."""
  parts = [x[:, start : start + LANES] for start in range(0, x.shape[1], LANES)]
  while len(parts) > 1:
    pairs = [combine(*parts[i : i + 2]) for i in range(0, len(parts) - 1, 2)]
    parts = pairs + parts[2 * len(pairs) :]
  return parts[0]
