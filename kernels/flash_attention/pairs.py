"""Which blocks of keys the queries of a block can see, as a table of pairs that a kernel walks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Of a pair: the first and last of its query block; all of its scores are seen, or some; the first and last of its key
# block.
FIRST, LAST, WHOLE, PARTIAL, KEY_FIRST, KEY_LAST = (1 << bit for bit in range(6))
_FLAG_BITS, _BLOCK_BITS = 6, 12


class Masks(NamedTuple):
  """Query t sees key s if they are of one segment and s <= order[t]. int32."""

  query_segments: jax.Array  # [B, T]
  key_segments: jax.Array  # [B, S]
  query_order: jax.Array  # [T]


class KeyRanges(NamedTuple):
  """The key blocks that each query block sees: from `first` to `last`, and perhaps not all between. [B, T / block]"""

  first: jax.Array
  last: jax.Array
  whole: jax.Array  # bool [B, T / block, S / block]: every query sees every key


def key_ranges(masks: Masks, query_block: int, key_block: int) -> KeyRanges:
  """A query block that sees nothing gets the first key block."""
  least = lambda x, block: x.reshape(*x.shape[:-1], -1, block).min(-1)
  most = lambda x, block: x.reshape(*x.shape[:-1], -1, block).max(-1)
  in_order = lambda segments: jnp.where(segments == 0, jnp.iinfo(jnp.int32).max, segments)  # padding comes last
  query_low, query_high = (of(in_order(masks.query_segments), query_block)[:, :, None] for of in (least, most))
  key_low, key_high = (of(in_order(masks.key_segments), key_block)[:, None] for of in (least, most))
  first_key = jnp.arange(key_low.shape[-1]) * key_block
  visible = (query_low <= key_high) & (query_high >= key_low)
  visible &= most(masks.query_order, query_block)[:, None] >= first_key
  one_segment = (query_low == query_high) & (key_low == key_high) & (query_low == key_low)
  whole = one_segment & (least(masks.query_order, query_block)[:, None] >= first_key + key_block - 1)
  first = jnp.argmax(visible, axis=-1)
  last = visible.shape[-1] - 1 - jnp.argmax(visible[..., ::-1], axis=-1)
  return KeyRanges(first.astype(jnp.int32), jnp.where(visible.any(-1), last, 0).astype(jnp.int32), whole)


class Pairs(NamedTuple):
  """One row of a table per sequence, by query block. Entries after a row's last pair repeat it, without flags."""

  entries: jax.Array  # int32 [B, W]: see `query_block_of`, `key_block_of` and the flags
  finished: jax.Array  # int32 [B, W]: key block of the first pair, from here on, that is the last of its key block
  longest: jax.Array  # int32 []: pairs of the row that has most


def query_block_of(entry: jax.Array) -> jax.Array:
  return entry >> (_FLAG_BITS + _BLOCK_BITS)


def key_block_of(entry: jax.Array) -> jax.Array:
  return (entry >> _FLAG_BITS) & ((1 << _BLOCK_BITS) - 1)


def table(ranges: KeyRanges) -> Pairs:
  """Raises ValueError for more blocks than an entry can tell apart."""
  _, queries, keys = ranges.whole.shape
  if max(queries, keys) > 1 << _BLOCK_BITS:
    raise ValueError(f"attention: {queries} query and {keys} key blocks, expected at most {1 << _BLOCK_BITS}")
  entries, finished, counts = jax.vmap(_row)(ranges)
  return Pairs(entries, finished, jnp.max(counts))


def _row(ranges: KeyRanges) -> tuple[jax.Array, jax.Array, jax.Array]:
  first, last, whole = ranges
  queries, keys = whole.shape
  seen = last - first + 1
  ends = jnp.cumsum(seen, dtype=jnp.int32)
  pair = jnp.arange(queries * keys, dtype=jnp.int32)
  used = pair < ends[-1]
  pair = jnp.minimum(pair, ends[-1] - 1)
  query = jnp.searchsorted(ends, pair, side="right", method="compare_all").astype(jnp.int32)
  key = first[query] + pair - (ends - seen)[query]
  sees = (first[:, None] <= jnp.arange(keys)) & (jnp.arange(keys) <= last[:, None])
  earliest = jnp.argmax(sees, axis=0)
  latest = queries - 1 - jnp.argmax(sees[::-1], axis=0)
  key_last = used & (query == latest[key])
  flags = (
    FIRST * (key == first[query])
    + LAST * (key == last[query])
    + jnp.where(whole[query, key], WHOLE, PARTIAL)
    + KEY_FIRST * (query == earliest[key])
    + KEY_LAST * key_last
  )
  entries = (query << (_FLAG_BITS + _BLOCK_BITS)) | (key << _FLAG_BITS) | jnp.where(used, flags, 0)
  next_finished = jax.lax.cummin(jnp.where(key_last, pair, ends[-1] - 1), reverse=True)
  return entries.astype(jnp.int32), key[next_finished], ends[-1]
