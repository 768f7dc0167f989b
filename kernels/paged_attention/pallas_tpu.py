"""Paged attention on TPU: one grid step is a block of new tokens of one sequence on all keys that they see.

Pages stay in HBM. A step goes through its keys in blocks of several pages, copied into one of two buffers while the
block in the other is attended to; the block after a step's last is the next step's first, so that the copies do not
wait between sequences. Query heads of a key head are rows of one matrix, token by token, and a step that holds only a
token or so attends with its first rows alone. Where a device has several cores, each takes some of the key heads.

A key's scale is common to its column of scores, and a value's to its column of weights: int8 keys and values are
converted, which is exact, and scores and weights are multiplied by the scales: for G rows a key, as when decoding, that
is less work than multiplying H numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import chip
from kernels.mosaic import HIDDEN, LANES, LOG2_E, across, dot, over_lanes, parameters
from kernels.paged_attention.items import Items, Layout, tokens_of_item
from kernels.paged_attention.pages import Pages

_HEADS, _KEYS, _TOKENS = 8, 1024, 256  # of a step, at most
_ROW_BYTES = 8192  # of a step's rows, by one number of each
_STRIP, _UNROLLED = 128, 8  # at most
_PAGE_TABLE_BYTES = 512 * 1024  # half of the scalar memory


class _Blocks(NamedTuple):
  heads: int  # key heads of a grid step
  tokens: int
  rows: int  # of a key head: the tokens' query heads, and what fills registers
  few: int  # rows that hold a token
  pages: int  # copied at a time


def supported(query: jax.Array, pages: Pages, page_table: jax.Array) -> bool:
  """Whether the kernel takes queries [S, N, H] on such pages."""
  whole_tiles = pages.page_size % (32 // pages.keys.dtype.itemsize) == 0
  dtypes = query.dtype in (jnp.bfloat16, jnp.float32) and pages.keys.dtype in (jnp.bfloat16, jnp.float32, jnp.int8)
  return query.shape[2] % LANES == 0 and whole_tiles and dtypes and page_table.size * 4 <= _PAGE_TABLE_BYTES


def _blocks(query: jax.Array, pages: Pages, page_table: jax.Array) -> _Blocks:
  S, N, _ = query.shape
  R, width = page_table.shape
  K = pages.keys.shape[1]
  G = N // K
  heads = max(heads for heads in range(1, _HEADS + 1) if K % heads == 0 and heads <= max(1, K // chip.core().cores))
  most = max(1, _ROW_BYTES // query.dtype.itemsize // (heads * G))
  tokens = tokens_of_item(S, R, min(_TOKENS, 1 << most.bit_length() - 1))
  least = 32 // query.dtype.itemsize  # rows of a register
  few = -(-G // least) * least
  rows = -(-tokens * G // least) * least
  unit = LANES // math.gcd(LANES, pages.page_size)  # pages whose keys fill lanes
  units = max(1, min(_KEYS // (unit * pages.page_size), -(-width // unit)))
  return _Blocks(heads, tokens, rows, few, units * unit)


def _strips(heads: int, rows: int) -> tuple[int, int]:
  """Rows that are scored at a time, and how many such strips, of all heads, are unrolled."""
  strip = max(strip for strip in range(8, _STRIP + 1, 8) if rows % strip == 0)
  strips = heads * rows // strip
  return strip, max(n for n in range(1, _UNROLLED + 1) if strips % n == 0)


class _Copies:
  """Of the pages of a block of keys to a buffer: `start` and `wait` take a step, the block's number and the buffer."""

  def __init__(self, items: Items, page_table, width: int, sources, buffers, semaphores, heads: int, pages: int):
    self._items, self._page_table, self._width = items, page_table, width
    self._sources, self._buffers, self._semaphores = sources, buffers, semaphores
    self._heads = pl.ds(pl.program_id(0) * heads, heads)
    self._pages, self._page_size = pages, sources[0].shape[2]

  def _each(self, item, n, buffer, act) -> None:
    first = n * self._pages
    used = pl.cdiv(self._items.limits[item], self._page_size)
    row = self._items.sequences[item] * self._width

    def one(i, _):
      page = self._page_table[row + first + i]
      place = pl.ds(pl.multiple_of(i * self._page_size, self._page_size), self._page_size)
      for kind, (source, there) in enumerate(zip(self._sources, self._buffers)):
        if kind < 2:
          pair = source.at[page, self._heads], there.at[buffer, :, place, :]
        else:  # scales of all heads: some of them would be a part of a tile
          pair = source.at[page], there.at[buffer, i]
        act(pltpu.make_async_copy(*pair, self._semaphores.at[buffer, kind]))

    jax.lax.fori_loop(0, jnp.minimum(used - first, self._pages), one, None)

  def start(self, item, n, buffer) -> None:
    self._each(item, n, buffer, lambda copy: copy.start())

  def wait(self, item, n, buffer) -> None:
    self._each(item, n, buffer, lambda copy: copy.wait())


def _kernel(sequences, positions, limits, first_blocks, page_table, query, *refs, block: _Blocks, G: int, width: int):
  """query, out [heads, rows, H]; key and value buffers [2, heads, keys, H], scales' [2, pages, K, lanes]; peak,
  total [heads, rows, lanes], sums [heads, rows, H]."""
  kinds = (len(refs) - 5) // 2
  sources, out, buffers = refs[:kinds], refs[kinds], refs[kinds + 1 : 2 * kinds + 1]
  peak, total, sums, semaphores = refs[2 * kinds + 1 :]
  key_buffer, value_buffer, *scale_buffers = buffers
  heads, rows, H = query.shape
  keys, page_size = key_buffer.shape[2], sources[0].shape[2]
  scale = LOG2_E * H**-0.5
  item, items = pl.program_id(1), pl.num_programs(1)
  position, limit = positions[item], limits[item]
  copies = _Copies(
    Items(sequences, positions, limits), page_table, width, sources, buffers, semaphores, heads, block.pages
  )
  blocks = first_blocks[item + 1] - first_blocks[item]

  @pl.when(item == 0)
  def _():
    copies.start(0, 0, first_blocks[0] % 2)

  def scales_of(which: int, buffer, head) -> jax.Array:
    """[1, keys]"""
    row = pl.ds(pl.program_id(0) * heads + head, 1)
    return jnp.concatenate([scale_buffers[which][buffer, page, row, :page_size] for page in range(block.pages)], axis=1)

  def clear(n, buffer) -> None:
    """Values of no token become 0: what was there may be NaN, and so would be its product with no weight."""

    def one(i, _):
      first = pl.multiple_of(i * page_size, page_size)
      at = buffer, slice(None), pl.ds(first, page_size), slice(None)
      written = n * keys + first + jax.lax.broadcasted_iota(jnp.int32, (1, page_size, 1), 1) < limit
      value_buffer[at] = jnp.where(written, value_buffer[at], jnp.zeros((), value_buffer.dtype))

    jax.lax.fori_loop(jnp.maximum(limit - n * keys, 0) // page_size, block.pages, one, None)

  def attend(n, buffer, masked: bool, rows: int) -> None:
    """The block of keys to the first `rows` rows of each head."""
    place = n * keys + jax.lax.broadcasted_iota(jnp.int32, (1, keys), 1)
    # The first row that sees a key: row r is of the token at position + r // G.
    first_row = (place - position) * G
    strip, unrolled = _strips(heads, rows)
    strips_of_head = rows // strip

    def scores_of(head, start) -> jax.Array:
      scores = dot(query[head, pl.ds(start, strip), :], key_buffer[buffer, head].astype(query.dtype), (1, 1))
      if scale_buffers:
        scores *= scales_of(0, buffer, head)
      if not masked:
        return scores
      row = start + jax.lax.broadcasted_iota(jnp.int32, (strip, 1), 0)
      return jnp.where(row >= first_row, scores, HIDDEN)

    def add(head, start, weights: jax.Array, rescale: jax.Array) -> None:
      values = value_buffer[buffer, head].astype(query.dtype)
      if scale_buffers:
        scales = scales_of(1, buffer, head)
        weights *= jnp.where(place < limit, scales, 0) if masked else scales
      at = head, pl.ds(start, strip), slice(None)
      sums[at] = sums[at] * across(rescale, H) + dot(weights.astype(query.dtype), values, (1, 0))

    def some_strips(first, _) -> None:
      strips = [first * unrolled + i for i in range(unrolled)]
      places = [(s // strips_of_head, pl.multiple_of(s % strips_of_head * strip, strip)) for s in strips]
      ahead = scores_of(*places[0])
      weighted: tuple = ()
      for i, (head, start) in enumerate(places):
        scores = ahead
        if i + 1 < unrolled:
          ahead = scores_of(*places[i + 1])
        at = head, pl.ds(start, strip), slice(None)
        old = peak[at]
        new = jnp.maximum(old, jnp.max(over_lanes(scores, jnp.maximum), axis=1, keepdims=True))
        weights = jnp.exp2((scores - across(new, keys)) * scale)
        rescale = jnp.exp2((old - new) * scale)
        peak[at] = new
        total[at] = total[at] * rescale + over_lanes(weights, jnp.add)
        if weighted:
          add(*weighted)
        weighted = head, start, weights, rescale
      add(*weighted)

    jax.lax.fori_loop(0, heads * strips_of_head // unrolled, some_strips, None)

  def of_rows(rows: int) -> None:
    peak[:, :rows, :] = jnp.full((heads, rows, LANES), HIDDEN)
    total[:, :rows, :] = jnp.zeros((heads, rows, LANES))
    sums[:, :rows, :] = jnp.zeros((heads, rows, H))

    def step(n) -> None:
      buffer = (first_blocks[item] + n) % 2
      last = n + 1 == blocks

      @pl.when(jnp.logical_not(last))
      def _():
        copies.start(item, n + 1, 1 - buffer)

      @pl.when(last & (item + 1 < items))
      def _():
        copies.start(item + 1, 0, 1 - buffer)

      copies.wait(item, n, buffer)
      if not scale_buffers:
        clear(n, buffer)
      whole = (n + 1) * keys <= position + 1  # the first token sees the block's last key
      pl.when(whole)(functools.partial(attend, n, buffer, False, rows))
      pl.when(jnp.logical_not(whole))(functools.partial(attend, n, buffer, True, rows))

    jax.lax.fori_loop(0, blocks, lambda n, _: step(n), None)
    for head in range(heads):
      normaliser = jnp.sum(total[head, :rows, :], axis=1, keepdims=True)
      out[head, :rows, :] = (sums[head, :rows, :] / normaliser).astype(out.dtype)

  if block.few == rows:
    of_rows(rows)
  else:
    few = (limit - position) * G <= block.few
    pl.when(few)(functools.partial(of_rows, block.few))
    pl.when(jnp.logical_not(few))(functools.partial(of_rows, rows))


def attend(query, pages: Pages, page_table, lengths, query_starts, interpret=False) -> jax.Array:
  """As `api.paged_attention`. `interpret`: as in `pallas_call`."""
  S, N, H = query.shape
  P, K, page_size, _ = pages.keys.shape
  width = page_table.shape[1]
  block = _blocks(query, pages, page_table)
  layout = Layout(lengths, query_starts, S, block.tokens)
  queries = layout.to_items(query, K)
  queries = jnp.pad(queries, ((0, 0), (0, 0), (0, block.rows - queries.shape[2]), (0, 0)))
  keys = block.pages * page_size
  blocks = jnp.maximum(1, -(-layout.items.limits // keys))  # a step without keys has one, of no pages
  first_blocks = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(blocks, dtype=jnp.int32)])
  sources = [x for x in pages if x is not None]
  buffers = [pltpu.VMEM((2, block.heads, keys, H), pages.keys.dtype)] * 2
  buffers += [pltpu.VMEM((2, block.pages, *x.shape[1:]), x.dtype) for x in sources[2:]]
  rows = pl.BlockSpec((None, block.heads, block.rows, H), lambda group, item, *_: (item, group, 0, 0))
  per_row = lambda n: pltpu.VMEM((block.heads, block.rows, n), jnp.float32)
  output = pl.pallas_call(
    functools.partial(_kernel, block=block, G=N // K, width=width),
    out_shape=jax.ShapeDtypeStruct(queries.shape, query.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=5,
      in_specs=[rows, *(pl.BlockSpec(memory_space=pl.ANY) for _ in sources)],
      out_specs=rows,
      grid=(K // block.heads, layout.count),
      scratch_shapes=[
        *buffers,
        per_row(LANES),
        per_row(LANES),
        per_row(H),
        pltpu.SemaphoreType.DMA((2, len(sources))),
      ],
    ),
    # The compiler's checks of bounds are most of the work of starting a copy; pages are clipped instead.
    compiler_params=dataclasses.replace(parameters(pltpu.PARALLEL, pltpu.ARBITRARY), disable_bounds_checks=True),
    cost_estimate=_cost(query, pages, page_table),
    interpret=interpret,
    name="paged_attention",
  )(*layout.items, first_blocks, jnp.clip(page_table, 0, P - 1).reshape(-1), queries, *sources)
  return layout.to_tokens(output[:, :, : block.tokens * (N // K)], S, N)


def _cost(query: jax.Array, pages: Pages, page_table: jax.Array) -> pl.CostEstimate:
  """For sequences that fill their rows of the page table."""
  S, N, H = query.shape
  R, width = page_table.shape
  scores = S * N * width * pages.page_size
  of_page = sum(x.nbytes for x in pages if x is not None) // pages.keys.shape[0]
  return pl.CostEstimate(
    flops=4 * scores * H, transcendentals=scores, bytes_accessed=R * width * of_page + 2 * query.nbytes
  )
