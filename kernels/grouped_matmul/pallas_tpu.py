"""Grouped matmul on TPU: a grid over pairs of a tile of rows and a group that has rows in it.

The pairs are a table made from the group sizes, in order of rows, and the grid is as long as the table: empty groups
and rows after the last group cost nothing. A pair whose tile lies whole in its group is one product. In any other, only
the strips of the tile that hold rows of the group are multiplied, so a tile shared by several groups costs little more
than one product. A block holds all of the contracted dimension: nothing is accumulated between grid steps, and a
group's matrix stays in VMEM while its tiles pass.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import chip
from kernels.mosaic import dot, parameters

_TILE = 512  # rows
_STRIP = 128  # rows


class _Pairs(NamedTuple):
  """The table. int32; entries after the last pair are not used."""

  groups: jax.Array  # [W]
  tiles: jax.Array  # [W]
  offsets: jax.Array  # [E + 1]: where groups start


def _pairs(group_sizes: jax.Array, M: int, tile: int, with_empty: bool) -> tuple[_Pairs, jax.Array]:
  """The table and its length, for groups of rows 0..M; each empty group makes one pair too, if they are wanted."""
  E = group_sizes.shape[0]
  tiles = -(-M // tile)
  offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(group_sizes, dtype=jnp.int32)])
  starts, ends = offsets[:-1], offsets[1:]
  first = jnp.minimum(starts // tile, tiles - 1)
  spanned = jnp.where(group_sizes > 0, -(-ends // tile) - first, int(with_empty))
  last_pair = jnp.cumsum(spanned, dtype=jnp.int32)
  pair = jnp.arange(tiles + E, dtype=jnp.int32)  # neighbours share at most a tile
  groups = jnp.minimum(jnp.searchsorted(last_pair, pair, side="right", method="compare_all"), E - 1).astype(jnp.int32)
  place = first[groups] + pair - (last_pair - spanned)[groups]
  return _Pairs(groups, jnp.clip(place, 0, tiles - 1), offsets), last_pair[-1]


def _bounds(pairs: _Pairs, pair: jax.Array, tile: int) -> tuple[jax.Array, jax.Array]:
  """First row of the pair's group, and the one after its last, counted from the start of the pair's tile."""
  group = pairs.groups[pair]
  start = pairs.tiles[pair] * tile
  return pairs.offsets[group] - start, pairs.offsets[group + 1] - start


def _for_each_strip(low, high, tile: int, strip: int, body) -> None:
  """`body(rows, inside)` on the strips of a tile with rows low..high: a slice, and a mask [strip, 1] of such rows."""

  def step(s, _):
    first = pl.multiple_of(s * strip, strip)
    row = first + jax.lax.broadcasted_iota(jnp.int32, (strip, 1), 0)
    body(pl.ds(first, strip), (row >= low) & (row < high))

  first, last = jnp.maximum(low, 0) // strip, pl.cdiv(jnp.minimum(high, tile), strip)
  jax.lax.fori_loop(first, last, step, None)


def _times_matrix_kernel(groups, tiles, offsets, lhs, *refs, tile: int, strip: int, contract: int, combine):
  *matrices, out = refs
  low, high = _bounds(_Pairs(groups, tiles, offsets), pl.program_id(1), tile)
  whole = (low <= 0) & (high >= tile)
  product = lambda rows: combine(*(dot(rows, matrix[...], (1, contract)) for matrix in matrices))

  @pl.when(whole)
  def _():
    out[...] = product(lhs[...]).astype(out.dtype)

  def one_strip(rows, inside):  # the rows of other groups in this strip are, or will be, written by their own pairs
    out[rows, :] = jnp.where(inside, product(lhs[rows, :]).astype(out.dtype), out[rows, :])

  @pl.when(jnp.logical_not(whole))
  def _():
    _for_each_strip(low, high, tile, strip, one_strip)


def _columns(n: int, column_bytes: int, limit: int, parts: int) -> int:
  """The widest block of columns that divides n, holds a multiple of 128 and at most `limit` bytes, and leaves
  `parts` blocks if that can be; n where none does."""
  widths = [width for width in range(128, n + 1, 128) if n % width == 0 and width * column_bytes <= limit]
  split = [width for width in widths if n // width >= parts]
  return max(split or widths, default=n)


def _row_tile(M: int, dtype) -> tuple[int, int]:
  """Rows of a tile and of a strip."""
  least = 32 // jnp.dtype(dtype).itemsize  # rows of a register
  tile = min(_TILE, least * pl.cdiv(M, least))
  return tile, math.gcd(tile, _STRIP)


def _times_matrix(lhs, matrices, group_sizes, contract: int, combine=lambda x: x, interpret=False) -> jax.Array:
  """Rows [M, D] times their groups' `matrices` [E, D, F], combined elementwise -> [M, F]. Contract 2: [E, F, D]."""
  M, D = lhs.shape
  F = matrices[0].shape[3 - contract]
  tile, strip = _row_tile(M, lhs.dtype)
  core = chip.core()
  column_bytes = 2 * len(matrices) * D * matrices[0].dtype.itemsize  # two buffers
  width = _columns(F, column_bytes, int(0.2 * core.vmem_bytes), core.cores)
  pairs, count = _pairs(group_sizes, M, tile, with_empty=False)
  block = (None, D, width) if contract == 1 else (None, width, D)
  place = (
    (lambda n, pair, groups, *_: (groups[pair], 0, n))
    if contract == 1
    else (lambda n, pair, groups, *_: (groups[pair], n, 0))
  )
  kernel = functools.partial(_times_matrix_kernel, tile=tile, strip=strip, contract=contract - 1, combine=combine)
  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((M, F), lhs.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(pairs),
      in_specs=[
        pl.BlockSpec((tile, D), lambda n, pair, groups, tiles, offsets: (tiles[pair], 0)),
        *(pl.BlockSpec(block, place) for _ in matrices),
      ],
      out_specs=pl.BlockSpec((tile, width), lambda n, pair, groups, tiles, offsets: (tiles[pair], n)),
      grid=(F // width, count),
    ),
    compiler_params=parameters(pltpu.PARALLEL, pltpu.ARBITRARY),
    cost_estimate=_cost(len(matrices), M, D, F, lhs.dtype, sum(matrix.nbytes for matrix in matrices)),
    interpret=interpret,
    name="grouped_matmul",
  )(*pairs, lhs, *matrices)


def _cost(products: int, M: int, D: int, F: int, dtype, matrix_bytes: int) -> pl.CostEstimate:
  return pl.CostEstimate(
    flops=2 * products * M * D * F,
    transcendentals=0,
    bytes_accessed=(M * D + M * F) * jnp.dtype(dtype).itemsize + matrix_bytes,
  )


def _to_matrices_kernel(groups, tiles, offsets, lhs, gradient, out, total, *, tile: int, strip: int):
  pair, pairs = pl.program_id(2), pl.num_programs(2)
  group = groups[pair]
  low, high = _bounds(_Pairs(groups, tiles, offsets), pair, tile)
  whole = (low <= 0) & (high >= tile)

  @pl.when((pair == 0) | (groups[jnp.maximum(pair - 1, 0)] != group))
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(whole)
  def _():
    total[...] += dot(lhs[...], gradient[...], (0, 0))

  def one_strip(rows, inside):  # rows outside may hold anything, NaN too: both factors are cleared
    clear = lambda x: jnp.where(inside, x, jnp.zeros_like(x))
    total[...] += dot(clear(lhs[rows, :]), clear(gradient[rows, :]), (0, 0))

  @pl.when(jnp.logical_not(whole))
  def _():
    _for_each_strip(low, high, tile, strip, one_strip)

  @pl.when((pair == pairs - 1) | (groups[jnp.minimum(pair + 1, pairs - 1)] != group))
  def _():
    out[...] = total[...].astype(out.dtype)


def _to_matrices(lhs, gradient, group_sizes, dtype, interpret=False) -> jax.Array:
  """Sum over each group's rows of lhs [M, D] outer gradient [M, F] -> [E, D, F]; 0 for empty groups."""
  M, D = lhs.shape
  F = gradient.shape[1]
  tile, strip = _row_tile(M, lhs.dtype)
  core = chip.core()
  cell_bytes = 4 + 2 * jnp.dtype(dtype).itemsize  # the sum, and two buffers of the result
  width = _columns(F, 128 * cell_bytes, int(0.25 * core.vmem_bytes), 1)
  height = _columns(D, width * cell_bytes, int(0.25 * core.vmem_bytes), core.cores)
  pairs, count = _pairs(group_sizes, M, tile, with_empty=True)
  return pl.pallas_call(
    functools.partial(_to_matrices_kernel, tile=tile, strip=strip),
    out_shape=jax.ShapeDtypeStruct((group_sizes.shape[0], D, F), dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(pairs),
      in_specs=[
        pl.BlockSpec((tile, height), lambda d, f, pair, groups, tiles, offsets: (tiles[pair], d)),
        pl.BlockSpec((tile, width), lambda d, f, pair, groups, tiles, offsets: (tiles[pair], f)),
      ],
      out_specs=pl.BlockSpec((None, height, width), lambda d, f, pair, groups, *_: (groups[pair], d, f)),
      grid=(D // height, F // width, count),
      scratch_shapes=[pltpu.VMEM((height, width), jnp.float32)],
    ),
    compiler_params=parameters(pltpu.PARALLEL, pltpu.PARALLEL, pltpu.ARBITRARY),
    cost_estimate=_cost(1, M, D, F, lhs.dtype, group_sizes.shape[0] * D * F * jnp.dtype(dtype).itemsize),
    interpret=interpret,
    name="grouped_matmul_gradient",
  )(*pairs, lhs, gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(lhs, rhs, group_sizes, interpret=False) -> jax.Array:
  """As `api.grouped_matmul`. `interpret`: as in `pallas_call`."""
  return _times_matrix(lhs, [rhs], group_sizes, contract=1, interpret=interpret)


def _forward(lhs, rhs, group_sizes, interpret):
  return grouped_matmul(lhs, rhs, group_sizes, interpret), (lhs, rhs, group_sizes)


def _backward(interpret, residuals, gradient):
  lhs, rhs, group_sizes = residuals
  to_lhs = _times_matrix(gradient, [rhs], group_sizes, contract=2, interpret=interpret)
  return to_lhs, _to_matrices(lhs, gradient, group_sizes, rhs.dtype, interpret), None


grouped_matmul.defvjp(_forward, _backward)


def gated(lhs, gate, up, group_sizes, interpret=False) -> jax.Array:
  """silu(lhs @ gate) * (lhs @ up) by group, in one pass over lhs; no derivative. Shapes as in `api.grouped_matmul`."""
  combine = lambda gate, up: jax.nn.silu(gate) * up
  return _times_matrix(lhs, [gate, up], group_sizes, contract=1, combine=combine, interpret=interpret)
