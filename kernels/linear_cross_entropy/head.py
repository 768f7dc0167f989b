"""A head that is split over the mesh axes of its rows, whole on each of their devices."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from kernels.collectives import all_gather, reduce_scatter

_SCATTERS = 8  # at most


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(head: jax.Array, embed_axes: tuple[str, ...]) -> jax.Array:
  """[D / n, V], of the n devices of `embed_axes`, -> [D, V]. Its gradient is summed over them and scattered."""
  return all_gather(head, embed_axes, 0)


def scattered(head_gradient: jax.Array, embed_axes: tuple[str, ...], dtype) -> jax.Array:
  """Sums [D, V] over the devices of `embed_axes`, each of which gets its rows [D / n, V], in `dtype`.

  Some columns at a time, under a loop: XLA on TPU else makes an all-reduce of the whole and cuts it in every use.
  """
  if not embed_axes:
    return head_gradient.astype(dtype)
  D, V = head_gradient.shape
  width = V // math.gcd(V, _SCATTERS)

  def scatter(start):
    columns = jax.lax.dynamic_slice(head_gradient, (0, start), (D, width)).astype(dtype)
    return reduce_scatter(columns, embed_axes, 0)

  parts = jax.lax.map(scatter, jnp.arange(0, V, width))
  return parts.swapaxes(0, 1).reshape(-1, V)


gathered.defvjp(
  lambda head, embed_axes: (gathered(head, embed_axes), None),
  lambda embed_axes, _, gradient: (scattered(gradient, embed_axes, gradient.dtype),),
)
