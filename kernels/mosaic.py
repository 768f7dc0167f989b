"""What Pallas kernels for TPU share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from kernels import chip


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """Product of two matrices over the given axis of each, in float32."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def parameters(*semantics: pltpu.GridDimensionSemantics) -> pltpu.CompilerParams:
  # The compiler counts a kernel's VMEM twice: more than half is refused.
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=chip.core().vmem_bytes // 2)
