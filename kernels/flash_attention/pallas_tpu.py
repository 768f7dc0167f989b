"""Attention on TPU: one grid step is a block of queries of a few heads on a block of keys of the head that they share.

The pairs of blocks are a table (`pairs`), and the grid is as long as the table: blocks that share no document, and
those above the diagonal, cost nothing, and only blocks that a mask cuts apply one. Query heads of a key/value head are
rows of one matrix, so keys and values are neither repeated nor loaded once a head. A step's scores are made and
weighted in strips of rows, the next strip's product issued before the softmax of the one before it, so that the matrix
unit does not wait for the vector unit.

The backward pass makes all three gradients from one recomputation of the weights: five products a pair, where separate
kernels for queries and for keys and values need seven (FlashAttention-2, Dao 2023, algorithm 2). Scores are transposed,
[keys, rows]: what belongs to a query then lies along lanes, and two of the three gradients need no transposed scores.
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
from kernels.flash_attention.heads import padded
from kernels.flash_attention.pairs import (
  FIRST,
  KEY_FIRST,
  KEY_LAST,
  LAST,
  PARTIAL,
  WHOLE,
  Masks,
  key_block_of,
  key_ranges,
  query_block_of,
  table,
)
from kernels.mosaic import HIDDEN, LANES, LOG2_E, across, column, dot, over_lanes, parameters, strips


class _Blocks(NamedTuple):
  queries: int = 512
  keys: int = 512
  heads: int = 5  # at most, that share a step
  strip: int = 128  # rows of the forward pass
  backward_strip: int = 256
  panel: int = 8192  # keys whose gradients are summed in VMEM


# By the columns of the matrix unit; benchmarks/tune_blocks.py makes it from static cycles.
_BLOCKS = {128: _Blocks(), 256: _Blocks(keys=1024)}


def supported(query: jax.Array) -> bool:
  """Whether the kernels take queries [B, T, N, H]."""
  return query.shape[3] % LANES == 0 and query.dtype in (jnp.bfloat16, jnp.float32)


def _blocks(T: int, S: int, G: int, matmul_size: int | None = None) -> _Blocks:
  """For padded lengths; for the chip at hand unless its matrix unit's columns are given."""
  best = _BLOCKS[matmul_size or chip.core().matmul_size]
  heads = max(heads for heads in range(1, best.heads + 1) if G % heads == 0)
  queries = math.gcd(T, best.queries * (2 if heads == 1 else 1))  # else too few rows to fill the matrix unit
  keys = math.gcd(S, best.keys)
  return best._replace(
    queries=queries,
    keys=keys,
    heads=heads,
    strip=math.gcd(best.strip, queries),
    backward_strip=math.gcd(best.backward_strip, queries),
    panel=max(keys, best.panel // keys * keys),
  )


def _padded_masks(masks: Masks) -> Masks:
  """Queries added at the end see the first key; keys added at the end come after all that a query sees."""
  return Masks(*(padded(x, -1, LANES) for x in masks))


def _by_head(x: jax.Array) -> jax.Array:
  """[B, T, N, H] -> [B, N, padded T, H]"""
  return padded(x.swapaxes(1, 2), 2, LANES)


def _within(rows: slice, queries: int) -> slice:
  """The place in a block of queries of a strip of rows [heads * queries]."""
  start = rows.start % queries
  return slice(start, start + rows.stop - rows.start)


def _entry(entries: jax.Array, width: int) -> jax.Array:
  return entries[pl.program_id(0) * width + pl.program_id(3)]


def _when(entry: jax.Array, flag: int):
  return pl.when((entry & flag) != 0)


def _forward_kernel(
  entries, query, key, value, query_segments, key_segments, order, out, log_sums, peak, total, sums, *, width, strip
):
  """query, out [g, t, H], key, value [s, H]; log_sums [g, 1, t]; peak, total [g * t, lanes], sums [g * t, H]."""
  heads, queries, H = query.shape
  keys = key.shape[0]
  rows = heads * queries
  scale = LOG2_E * H**-0.5
  entry = _entry(entries, width)
  row_strips = strips(rows, strip)

  @_when(entry, FIRST)
  def _():
    peak[...] = jnp.full_like(peak, HIDDEN)
    total[...] = jnp.zeros_like(total)
    sums[...] = jnp.zeros_like(sums)

  def scores_of(rows: slice, masked: bool) -> jax.Array:
    head, place = rows.start // queries, _within(rows, queries)
    scores = dot(query[head, place, :], key[...], (1, 1))
    if not masked:
      return scores
    key_place = key_block_of(entry) * keys + jax.lax.broadcasted_iota(jnp.int32, (1, keys), 1)
    same = across(column(query_segments[:, place]), keys) == key_segments[...]
    return jnp.where(same & (across(column(order[:, place]), keys) >= key_place), scores, HIDDEN)

  def add(rows: slice, weights: jax.Array, rescale: jax.Array) -> None:
    sums[rows, :] = sums[rows, :] * across(rescale, H) + dot(weights, value[...], (1, 0))

  def update(masked: bool) -> None:
    ahead = scores_of(row_strips[0], masked)
    weighted: tuple = ()
    for n, rows in enumerate(row_strips):
      scores = ahead
      if n + 1 < len(row_strips):
        ahead = scores_of(row_strips[n + 1], masked)
      old = peak[rows, :]
      new = jnp.maximum(old, jnp.max(over_lanes(scores, jnp.maximum), axis=1, keepdims=True))
      weights = jnp.exp2((scores - across(new, keys)) * scale)
      rescale = jnp.exp2((old - new) * scale)
      peak[rows, :] = new
      total[rows, :] = total[rows, :] * rescale + over_lanes(weights, jnp.add)
      if weighted:
        add(*weighted)
      weighted = rows, weights.astype(value.dtype), rescale
    add(*weighted)

  _when(entry, WHOLE)(functools.partial(update, masked=False))
  _when(entry, PARTIAL)(functools.partial(update, masked=True))

  @_when(entry, LAST)
  def _():
    for rows in row_strips:
      head, place = rows.start // queries, _within(rows, queries)
      normaliser = jnp.sum(total[rows, :], axis=1, keepdims=True)
      out[head, place, :] = (sums[rows, :] / normaliser).astype(out.dtype)
      log_sum = peak[rows, :] * H**-0.5 + jnp.log(normaliser)
      log_sums[head, :, place] = log_sum.T[:1]


class _Specs:
  """Blocks of the operands. The grid: sequences, key heads, groups of query heads of a key head, pairs."""

  def __init__(self, block: _Blocks, H: int, groups: int, width: int):
    g, t, s = block.heads, block.queries, block.keys
    self._groups, self._width = groups, width
    self.queries = self._spec((None, g, t, H), lambda b, heads, k, i, j: (b, heads, i, 0))
    self.keys = self._spec((None, None, s, H), lambda b, heads, k, i, j: (b, k, j, 0))
    self.numbers = self._spec((None, g, 1, t), lambda b, heads, k, i, j: (b, heads, 0, i))  # one a query and head
    self.masks = [
      self._spec((None, 1, t), lambda b, heads, k, i, j: (b, 0, i)),
      self._spec((None, 1, s), lambda b, heads, k, i, j: (b, 0, j)),
      self._spec((1, t), lambda b, heads, k, i, j: (0, i)),
    ]

  def _spec(self, shape, index) -> pl.BlockSpec:
    def index_map(b, k, group, pair, entries, *_):
      entry = entries[b * self._width + pair]
      return index(b, k * self._groups + group, k, query_block_of(entry), key_block_of(entry))

    return pl.BlockSpec(shape, index_map)


def _mask_operands(masks: Masks) -> tuple[jax.Array, jax.Array, jax.Array]:
  return masks.query_segments[:, None], masks.key_segments[:, None], masks.query_order[None]


def _cost(products: int, queries: jax.Array, keys: jax.Array) -> pl.CostEstimate:
  """For a causal mask and one document."""
  B, N, T, H = queries.shape
  scores = B * N * T * keys.shape[2] // 2
  moved = products * (queries.nbytes + keys.nbytes)
  return pl.CostEstimate(flops=2 * products * scores * H, transcendentals=scores, bytes_accessed=moved)


def forward(query, key, value, masks: Masks, interpret=False) -> tuple[jax.Array, jax.Array]:
  """As `blockwise.forward`. `interpret`: as in `pallas_call`."""
  B, T, N, H = query.shape
  K = key.shape[2]
  queries, keys, values, masks = _by_head(query), _by_head(key), _by_head(value), _padded_masks(masks)
  block = _blocks(queries.shape[2], keys.shape[2], N // K)
  pairs = table(key_ranges(masks, block.queries, block.keys))
  width = pairs.entries.shape[1]
  groups = N // K // block.heads
  specs = _Specs(block, H, groups, width)
  rows = block.heads * block.queries
  per_row = lambda n: pltpu.VMEM((rows, n), jnp.float32)
  out, log_sums = pl.pallas_call(
    functools.partial(_forward_kernel, width=width, strip=block.strip),
    out_shape=(
      jax.ShapeDtypeStruct(queries.shape, query.dtype),
      jax.ShapeDtypeStruct((B, N, 1, queries.shape[2]), jnp.float32),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      in_specs=[specs.queries, specs.keys, specs.keys, *specs.masks],
      out_specs=(specs.queries, specs.numbers),
      grid=(B, K, groups, pairs.longest),
      scratch_shapes=[per_row(LANES), per_row(LANES), per_row(H)],
    ),
    compiler_params=parameters(pltpu.PARALLEL, pltpu.PARALLEL, pltpu.PARALLEL, pltpu.ARBITRARY),
    cost_estimate=_cost(2, queries, keys),
    interpret=interpret,
    name="flash_attention",
  )(pairs.entries.reshape(-1), queries, keys, values, *_mask_operands(masks))
  return out[:, :, :T].swapaxes(1, 2), log_sums[:, :, 0, :T]


def _backward_kernel(
  entries,
  finished,
  query,
  gradient,
  key,
  value,
  log_sums,
  deltas,
  query_segments,
  key_segments,
  order,
  to_query,
  to_key,
  to_value,
  query_sum,
  key_sums,
  value_sums,
  *,
  width,
  strip,
):
  """query, gradient, to_query [g, t, H]; key, value, to_key, to_value [s, H]; log_sums, deltas [g, 1, t]; query_sum
  [H, g * t]; key_sums, value_sums [panel, H]."""
  del finished  # for the blocks of to_key and to_value
  heads, queries, H = query.shape
  keys = key.shape[0]
  group, groups = pl.program_id(2), pl.num_programs(2)
  entry = _entry(entries, width)
  in_panel = pl.ds(pl.multiple_of(key_block_of(entry) * keys, keys), keys)

  @_when(entry, FIRST)
  def _():
    query_sum[...] = jnp.zeros_like(query_sum)

  @pl.when(((entry & KEY_FIRST) != 0) & (group == 0))
  def _():
    key_sums[in_panel, :] = jnp.zeros((keys, H), jnp.float32)
    value_sums[in_panel, :] = jnp.zeros((keys, H), jnp.float32)

  def visible(place: slice) -> jax.Array:
    """[s, strip]"""
    key_place = key_block_of(entry) * keys + jax.lax.broadcasted_iota(jnp.int32, (keys, 1), 0)
    same = across(column(key_segments[...]), strip) == query_segments[:, place]
    return same & (order[:, place] >= key_place)

  def update(masked: bool) -> None:
    transposed_key = key[...].T
    for rows in strips(heads * queries, strip):
      head, place = rows.start // queries, _within(rows, queries)
      q, do = query[head, place, :], gradient[head, place, :]
      scores = dot(key[...], q, (1, 1))  # [s, strip]
      weights = jnp.exp2(scores * (LOG2_E * H**-0.5) - log_sums[head, :, place] * LOG2_E)
      if masked:
        weights = jnp.where(visible(place), weights, 0.0)
      to_weights = dot(value[...], do, (1, 1))
      to_scores = (weights * (to_weights - deltas[head, :, place])).astype(q.dtype)
      value_sums[in_panel, :] += dot(weights.astype(q.dtype), do, (1, 0))
      key_sums[in_panel, :] += dot(to_scores, q, (1, 0))
      query_sum[:, rows] += dot(transposed_key, to_scores, (1, 0))

  _when(entry, WHOLE)(functools.partial(update, masked=False))
  _when(entry, PARTIAL)(functools.partial(update, masked=True))

  @_when(entry, LAST)
  def _():
    for rows in strips(heads * queries, strip):
      head, place = rows.start // queries, _within(rows, queries)
      to_query[head, place, :] = (query_sum[:, rows].T * H**-0.5).astype(to_query.dtype)

  @pl.when(((entry & KEY_LAST) != 0) & (group == groups - 1))
  def _():
    to_key[...] = (key_sums[in_panel, :] * H**-0.5).astype(to_key.dtype)
    to_value[...] = value_sums[in_panel, :].astype(to_value.dtype)


def backward(query, key, value, masks: Masks, log_sums, deltas, gradient, interpret=False):
  """As `blockwise.backward`. `interpret`: as in `pallas_call`."""
  T, S, N = query.shape[1], key.shape[1], query.shape[2]
  queries, keys, values, gradients = _by_head(query), _by_head(key), _by_head(value), _by_head(gradient)
  masks = _padded_masks(masks)
  block = _blocks(queries.shape[2], keys.shape[2], N // key.shape[2])
  numbers = [padded(x, 2, LANES)[:, :, None] for x in (log_sums, deltas)]
  starts = range(0, keys.shape[2], block.panel)
  parts = []
  for start in starts:  # queries' gradients are summed over panels of keys
    of_panel = lambda x, axis, start=start: jax.lax.slice_in_dim(
      x, start, min(start + block.panel, x.shape[axis]), axis=axis
    )
    parts.append(
      _panel_gradients(
        queries,
        gradients,
        of_panel(keys, 2),
        of_panel(values, 2),
        numbers,
        Masks(masks.query_segments, of_panel(masks.key_segments, 1), masks.query_order - start),
        block,
        query.dtype if len(starts) == 1 else jnp.float32,
        interpret,
      )
    )
  to_query = functools.reduce(jnp.add, [part[0] for part in parts]).astype(query.dtype)
  to_key, to_value = (jnp.concatenate([part[n] for part in parts], axis=2) for n in (1, 2))
  return tuple(x[:, :, :n].swapaxes(1, 2) for x, n in ((to_query, T), (to_key, S), (to_value, S)))


def _panel_gradients(queries, gradients, keys, values, numbers, masks, block, to_query_dtype, interpret):
  """Gradients of queries, through a panel of keys, and of those keys and values; all [B, heads, positions, H]."""
  B, N, _, H = queries.shape
  K, panel = keys.shape[1:3]
  ranges = key_ranges(masks, block.queries, block.keys)
  pairs = table(ranges)
  width = pairs.entries.shape[1]
  groups = N // K // block.heads
  specs = _Specs(block, H, groups, width)

  # The blocks of keys, in the order in which they are finished, while the last group of heads passes.
  def finished_place(b, k, group, pair, entries, finished):
    del entries
    return b, k, finished[b * width + jnp.where(group == groups - 1, pair, 0)], 0

  finished = pl.BlockSpec((None, None, block.keys, H), finished_place)
  to_query, to_key, to_value = pl.pallas_call(
    functools.partial(_backward_kernel, width=width, strip=block.backward_strip),
    out_shape=(
      jax.ShapeDtypeStruct(queries.shape, to_query_dtype),
      jax.ShapeDtypeStruct(keys.shape, keys.dtype),
      jax.ShapeDtypeStruct(values.shape, values.dtype),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      in_specs=[specs.queries, specs.queries, specs.keys, specs.keys, specs.numbers, specs.numbers, *specs.masks],
      out_specs=(specs.queries, finished, finished),
      grid=(B, K, groups, pairs.longest),
      scratch_shapes=[
        pltpu.VMEM((H, block.heads * block.queries), jnp.float32),
        pltpu.VMEM((panel, H), jnp.float32),
        pltpu.VMEM((panel, H), jnp.float32),
      ],
    ),
    compiler_params=parameters(pltpu.PARALLEL, pltpu.PARALLEL, pltpu.ARBITRARY, pltpu.ARBITRARY),
    cost_estimate=_cost(5, queries, keys),
    interpret=interpret,
    name="flash_attention_gradient",
  )(
    pairs.entries.reshape(-1),
    pairs.finished.reshape(-1),
    queries,
    gradients,
    keys,
    values,
    *numbers,
    *_mask_operands(masks),
  )
  # Keys that no query's range holds have no pair, and their blocks were not written.
  block_of_key = jnp.arange(panel) // block.keys
  seen = (ranges.first[:, :, None] <= block_of_key) & (block_of_key <= ranges.last[:, :, None])  # [B, blocks, panel]
  clear = lambda x: jnp.where(seen.any(1)[:, None, :, None], x, jnp.zeros_like(x))
  return to_query, clear(to_key), clear(to_value)
