"""Dispatch on TPU: a panel of columns of all tokens stays in VMEM while tiles of rows pass.

A row of a tiled array is spread over all tiles of its columns, so a panel is kept as a table of 32-bit numbers,
[tokens * S, lanes], in which one token's columns are S rows on end: one load reads a token and one store writes it,
wherever it is. Strided stores bring a block of an array to this order, and strided loads bring it back. Where bfloat16
is only moved, two numbers share one of the table's.

The steps of a panel are tiles of tokens and of rows: `permute` first takes in the tokens, then puts out rows; `combine`
first takes in the rows, then puts out tokens. The table has a token more, for rows whose index is out of range.

To add a row is to load, add and store in a place known at run time only. The compiler must assume that the next load
reads what the last store wrote, and waits; so rows are added in groups that hold no token twice, whose loads all come
before their stores.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import chip
from kernels.mosaic import LANES, parameters

GROUP = 8  # rows that hold a token at most once
_TILE = 512  # tokens or rows of a step
_PIECE, _PIECES = 32, 4  # rows brought to or from the order of the table at once, and such pieces of one loop body
_STRIP = 64  # tokens brought to or from the order of the table at once
_ROWS = 8  # S at most: a register's


@dataclasses.dataclass(frozen=True)
class _Plan:
  """How the table and the grid are laid out."""

  S: int
  width: int  # columns of a panel
  panels: int
  tokens: int  # tiles
  rows: int  # tiles

  @property
  def pitch(self) -> int:
    """From row to row of a piece: odd, since a stride of 8 would take all from one bank of the memory."""
    return self.S | 1

  @property
  def nowhere(self) -> int:
    """Where in the table the token of rows out of range starts."""
    return self.tokens * _TILE * self.S

  def table(self, dtype) -> pl.MemoryRef:
    return pltpu.VMEM((self.nowhere + _ROWS, LANES), dtype)

  def pieces(self, dtype) -> list[pl.MemoryRef]:
    return [pltpu.VMEM((_PIECE * self.pitch, LANES), dtype)] * _PIECES


def _plan(T: int, R: int, D: int, dtype, columns: int) -> _Plan | None:
  """The narrowest panels that give a core the fewest, where `columns` are a row of the table; None if none fit."""
  core = chip.core()
  tokens, rows, parts = pl.cdiv(T, _TILE), pl.cdiv(R, _TILE), D // columns

  def fits(S: int) -> bool:
    blocks = 4 * _TILE * columns * jnp.dtype(dtype).itemsize  # two buffers of the input and of the output
    return S * (4 * LANES * (tokens * _TILE + _PIECES * _PIECE) + blocks) <= 0.68 * core.vmem_bytes

  sizes = [S for S in range(1, min(_ROWS, parts) + 1) if fits(S)]
  if not sizes:
    return None
  S = min(sizes, key=lambda S: (pl.cdiv(pl.cdiv(parts, S), core.cores), S))
  return _Plan(S, S * columns, pl.cdiv(parts, S), tokens, rows)


def _plan_of_permute(T: int, R: int, D: int, dtype) -> _Plan | None:
  return _plan(T, R, D, dtype, LANES * 4 // jnp.dtype(dtype).itemsize)


def _plan_of_combine(T: int, R: int, D: int, dtype) -> _Plan | None:
  return _plan(T, R, D, dtype, LANES)


def supported(T: int, R: int, D: int, dtype) -> bool:
  """Whether the kernels take T tokens and R rows of D columns."""
  whole = dtype in (jnp.bfloat16, jnp.float32) and D % (LANES * 4 // jnp.dtype(dtype).itemsize) == 0
  if not whole or R % GROUP or not T * R:
    return False
  return bool(_plan_of_permute(T, R, D, dtype) and _plan_of_combine(T, R, D, dtype))


# The table takes much of VMEM. Places are in range by construction, and to check each would be much of the work.
_parameters = functools.partial(parameters, vmem_share=0.75, disable_bounds_checks=True)


def _places(index: jax.Array, T: int, plan: _Plan) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Where the tokens of rows start in the table [tiles, 1, tile], whether a tile has any, and the last one that had."""
  index = jnp.pad(index, (0, plan.rows * _TILE - index.shape[0]), constant_values=-1).reshape(plan.rows, 1, _TILE)
  valid = (index >= 0) & (index < T)
  used = jnp.any(valid, axis=(1, 2))
  last = jax.lax.cummax(jnp.where(used, jnp.arange(plan.rows, dtype=jnp.int32), 0))
  return jnp.where(valid, index * plan.S, plan.nowhere), used.astype(jnp.int32), last


def _loop(total: int, size: int, body: Callable[[jax.Array], None]) -> None:
  """`body(start)` on parts of the given size."""
  jax.lax.fori_loop(0, total // size, lambda i, _: body(pl.multiple_of(i * size, size)), None)


def _lanes(n: int) -> slice:
  return slice(n * LANES, (n + 1) * LANES)


def _bits(x: jax.Array) -> jax.Array:
  return pltpu.bitcast(x.astype(jnp.float32), jnp.uint32)


def _to_table(block, start, table, first, S: int) -> None:
  """A strip of a block [tile, width] to the table, as tokens from `first` on."""
  part = lambda n: _bits(block[pl.ds(start, _STRIP), _lanes(n)])
  for s in range(S):
    both = part(s) if block.dtype == jnp.float32 else (part(2 * s) >> 16) | part(2 * s + 1)
    table[pl.ds(first * S + s, _STRIP, S), :] = both


def _from_piece(piece, block, start, plan: _Plan) -> None:
  """Rows of a piece to a block [tile, width]."""
  rows = pl.ds(start, _PIECE)
  half = lambda x: pltpu.bitcast(x.astype(jnp.uint16), jnp.bfloat16)
  for s in range(plan.S):
    both = piece[pl.ds(s, _PIECE, plan.pitch), :]
    if block.dtype == jnp.float32:
      block[rows, _lanes(s)] = pltpu.bitcast(both, jnp.float32)
    else:
      block[rows, _lanes(2 * s)] = half(both)
      block[rows, _lanes(2 * s + 1)] = half(both >> 16)


def _permute_kernel(used, place, x, out, table, *pieces, plan: _Plan):
  """place [1, tile]; x, out [tile, width]; table [tokens * S, lanes], each piece [piece * pitch, lanes]."""
  step = pl.program_id(1)
  tile = step - plan.tokens

  @pl.when(step == 0)
  def _():
    table[pl.ds(plan.nowhere, _ROWS), :] = jnp.zeros((_ROWS, LANES), jnp.uint32)

  @pl.when(tile < 0)
  def _():
    _loop(_TILE, _STRIP, lambda start: _to_table(x, start, table, step * _TILE + start, plan.S))

  def some_rows(first) -> None:
    for n, piece in enumerate(pieces):
      start = first + n * _PIECE
      for row in range(_PIECE):
        piece[pl.ds(row * plan.pitch, plan.S), :] = table[pl.ds(place[0, start + row], plan.S), :]
      _from_piece(piece, out, pl.multiple_of(start, _PIECE), plan)

  def no_rows(start) -> None:
    out[pl.ds(start, _STRIP), :] = jnp.zeros((_STRIP, plan.width), out.dtype)

  has_rows = used[jnp.maximum(tile, 0)] > 0

  @pl.when((tile >= 0) & has_rows)
  def _():
    _loop(_TILE, _PIECE * len(pieces), some_rows)

  @pl.when((tile >= 0) & jnp.logical_not(has_rows))
  def _():
    _loop(_TILE, _STRIP, no_rows)


def permute(x: jax.Array, index: jax.Array, interpret=False) -> jax.Array:
  """As `api.permute`. `interpret`: as in `pallas_call`."""
  (T, D), R = x.shape, index.shape[0]
  plan = _plan_of_permute(T, R, D, x.dtype)
  assert plan
  places, used, _ = _places(index, T, plan)
  tile = lambda step: jnp.maximum(step - plan.tokens, 0)
  return pl.pallas_call(
    functools.partial(_permute_kernel, plan=plan),
    out_shape=jax.ShapeDtypeStruct((R, D), x.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      in_specs=[
        pl.BlockSpec((None, 1, _TILE), lambda panel, step, used: (tile(step), 0, 0), memory_space=pltpu.SMEM),
        pl.BlockSpec((_TILE, plan.width), lambda panel, step, used: (jnp.minimum(step, plan.tokens - 1), panel)),
      ],
      out_specs=pl.BlockSpec((_TILE, plan.width), lambda panel, step, used: (tile(step), panel)),
      grid=(plan.panels, plan.tokens + plan.rows),
      scratch_shapes=[plan.table(jnp.uint32), *plan.pieces(jnp.uint32)],
    ),
    compiler_params=_parameters(pltpu.PARALLEL, pltpu.ARBITRARY),
    cost_estimate=_cost(0, x.nbytes + R * D * x.dtype.itemsize),
    interpret=interpret,
    name="expert_permute",
  )(used, places, x)


def _cost(flops: int, bytes_accessed: int) -> pl.CostEstimate:
  return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=bytes_accessed)


def _combine_kernel(used, last, place, weight, rows, out, table, *pieces, plan: _Plan):
  """place, weight [1, tile]; rows, out [tile, width]; table [tokens * S, lanes], each piece [piece * pitch, lanes]."""
  S = plan.S
  step = pl.program_id(2)

  def clear(first, tokens: int) -> None:
    table[pl.ds(pl.multiple_of(first * S, _ROWS), tokens * S), :] = jnp.zeros((tokens * S, LANES), jnp.float32)

  @pl.when((pl.program_id(1) == 0) & (step == 0))  # other panels find what the panel before them left: zeros
  def _():
    _loop(plan.tokens * _TILE, _STRIP, lambda first: clear(first, _STRIP))
    table[pl.ds(plan.nowhere, _ROWS), :] = jnp.zeros((_ROWS, LANES), jnp.float32)

  def add(piece, first, start) -> None:
    """A group: rows of a piece from `first` on, which are those of the tile from `start` on."""
    there = [pl.ds(place[0, start + i], S) for i in range(GROUP)]
    row = lambda i: piece[pl.ds((first + i) * plan.pitch, S), :]
    sums = [table[there[i], :] + weight[0, start + i] * row(i) for i in range(GROUP)]
    for i in range(GROUP):
      table[there[i], :] = sums[i]

  def some_rows(first) -> None:
    for n, piece in enumerate(pieces):
      start = first + n * _PIECE
      for s in range(S):
        x = rows[pl.ds(pl.multiple_of(start, _PIECE), _PIECE), _lanes(s)]
        piece[pl.ds(s, _PIECE, plan.pitch), :] = x.astype(jnp.float32)
      for group in range(0, _PIECE, GROUP):
        add(piece, group, start + group)

  @pl.when((step < plan.rows) & (used[jnp.minimum(step, plan.rows - 1)] > 0))
  def _():
    _loop(_TILE, _PIECE * len(pieces), some_rows)

  def put_out(start) -> None:
    first = (step - plan.rows) * _TILE + start
    for s in range(S):
      out[pl.ds(start, _STRIP), _lanes(s)] = table[pl.ds(first * S + s, _STRIP, S), :].astype(out.dtype)
    clear(first, _STRIP)

  @pl.when(step >= plan.rows)
  def _():
    _loop(_TILE, _STRIP, put_out)


def combine(rows: jax.Array, index: jax.Array, weights: jax.Array, T: int, interpret=False) -> jax.Array:
  """As `api.combine`. `interpret`: as in `pallas_call`."""
  R, D = rows.shape
  plan = _plan_of_combine(T, R, D, rows.dtype)
  assert plan
  places, used, last = _places(index, T, plan)
  weights = jnp.pad(weights, (0, plan.rows * _TILE - R)).reshape(plan.rows, 1, _TILE)
  cores = math.gcd(plan.panels, chip.core().cores)
  panels = plan.panels // cores  # of a core
  tile = lambda step, last: last[jnp.minimum(step, plan.rows - 1)]  # of one without rows, nothing is read
  numbers = pl.BlockSpec(
    (None, 1, _TILE), lambda core, panel, step, used, last: (tile(step, last), 0, 0), memory_space=pltpu.SMEM
  )
  return pl.pallas_call(
    functools.partial(_combine_kernel, plan=plan),
    out_shape=jax.ShapeDtypeStruct((T, D), rows.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      in_specs=[
        numbers,
        numbers,
        pl.BlockSpec(
          (_TILE, plan.width), lambda core, panel, step, used, last: (tile(step, last), core * panels + panel)
        ),
      ],
      out_specs=pl.BlockSpec(
        (_TILE, plan.width),
        lambda core, panel, step, used, last: (jnp.maximum(step - plan.rows, 0), core * panels + panel),
      ),
      grid=(cores, panels, plan.rows + plan.tokens),
      scratch_shapes=[plan.table(jnp.float32), *plan.pieces(jnp.float32)],
    ),
    compiler_params=_parameters(pltpu.PARALLEL, pltpu.ARBITRARY, pltpu.ARBITRARY),
    cost_estimate=_cost(2 * R * D, rows.nbytes + T * D * rows.dtype.itemsize),
    interpret=interpret,
    name="expert_combine",
  )(used, last, places, weights, rows)
