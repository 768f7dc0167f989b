"""Work items: blocks of the new tokens of one sequence, so that tokens which share keys share a matrix."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Items(NamedTuple):
  """int32 [W], in order of sequences; those after the last see no key."""

  sequences: jax.Array
  positions: jax.Array  # in its sequence, of the first token
  limits: jax.Array  # keys that the last token sees


def tokens_of_item(S: int, R: int, most: int) -> int:
  """A power of two of at most the mean of new tokens: 1 where sequences decode, more for chunks of prompts."""
  return min(1 << max(S // R, 1).bit_length() - 1, most)


def _last_place(ordered: jax.Array, x: jax.Array) -> jax.Array:
  """Numbers of `ordered` that are at most x. They are few: on a TPU, to compare with all is faster than to search."""
  return jnp.searchsorted(ordered, x, side="right", method="compare_all").astype(jnp.int32)


class Layout:
  """Where tokens lie in items of `block` tokens; for lengths [R] and query_starts [R + 1], of S tokens."""

  def __init__(self, lengths: jax.Array, query_starts: jax.Array, S: int, block: int):
    R = lengths.shape[0]
    self._block, self._starts = block, query_starts
    new = jnp.diff(query_starts)
    self._ends = jnp.cumsum(-(-new // block), dtype=jnp.int32)
    self._firsts = jnp.concatenate([jnp.zeros(1, jnp.int32), self._ends])  # of the items of sequences
    item = jnp.arange((S + min(R, S) * (block - 1)) // block, dtype=jnp.int32)  # every sequence may end a block early
    sequence = jnp.minimum(_last_place(self._ends, item), R - 1)
    before = (item - self._firsts[sequence]) * block  # tokens of the sequence in items before
    positions = (lengths - new)[sequence] + before
    limits = jnp.minimum(positions + block, lengths[sequence])
    self._first_rows = query_starts[sequence] + before
    self.count = self._ends[-1]  # of items that hold tokens
    live = item < self.count
    self.items = Items(sequence, jnp.where(live, positions, 0), jnp.where(live, limits, 0))

  def to_items(self, query: jax.Array, K: int) -> jax.Array:
    """[S, N, H] -> [W, K, block * G, H], token by token; what follows a sequence's last token is of no use."""
    S, N, H = query.shape
    rows = self._first_rows[:, None] + jnp.arange(self._block, dtype=jnp.int32)
    found = jnp.take(query.reshape(S, K, N // K, H), rows, axis=0, mode="clip")  # [W, block, K, G, H]
    return found.swapaxes(1, 2).reshape(rows.shape[0], K, -1, H)

  def to_tokens(self, output: jax.Array, S: int, N: int) -> jax.Array:
    """[W, K, block * G, H] -> [S, N, H]; 0 for rows of no sequence."""
    W, K, _, H = output.shape
    token = jnp.arange(S, dtype=jnp.int32)
    sequence = _last_place(self._starts, token) - 1
    inside = (sequence >= 0) & (sequence < self._ends.shape[0])
    sequence = jnp.clip(sequence, 0, self._ends.shape[0] - 1)
    place = token - self._starts[sequence]
    item = jnp.clip(self._firsts[sequence] + place // self._block, 0, W - 1)
    by_token = output.reshape(W, K, self._block, N // K, H).swapaxes(1, 2)
    found = by_token[item, place % self._block].reshape(S, N, H)
    return jnp.where(inside[:, None, None], found, jnp.zeros_like(found))
