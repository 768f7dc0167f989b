"""Which rows of a global batch a process reads, and how they get to its devices."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Sharding

from qwen3_jax.batch import Batch


def local_rows(sharding: Sharding, shape: tuple[int, int]) -> list[int]:
  """Rows of a batch of global `shape` [B, T] that this process's devices hold, in order.

  A mesh axis that splits the sequence or the model may span processes; these then read the same rows.
  """
  B, _ = shape
  indices = sharding.addressable_devices_indices_map(shape).values()
  return sorted({row for index in indices if index is not None for row in range(*index[0].indices(B))})


def to_devices(local: Batch, rows: Sequence[int], sharding: Sharding, shape: tuple[int, int]) -> Batch:
  """The global batch [B, T] of which `local` [len(rows), T] holds `rows`, those of `local_rows`."""

  def place(x: np.ndarray) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None  # of an array with two axes
      start, stop, _ = index[0].indices(shape[0])
      first = int(np.searchsorted(rows, start))
      return x[first : first + stop - start, index[1]]

    return jax.make_array_from_callback((*shape, *x.shape[2:]), sharding, part)

  return jax.tree.map(place, local)
