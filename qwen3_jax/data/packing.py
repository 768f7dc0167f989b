"""Packing: which pieces of which documents fill a row, and the arrays of a row.

Documents are permuted over the whole corpus by a keyed bijection of their numbers (no order is stored), cut at the
window, and packed best-fit in decreasing order of length (Ding et al. 2024, "Fewer Truncations Improve Language
Modeling"), all pieces of one length at a time (after Krell et al. 2021, "Efficient Sequence Packing without
Cross-contamination").

They come in pools of POOL_DOCUMENTS. A pool is planned from lengths and from where it starts alone, so a run over
billions of documents holds one pool at a time and resumes by planning the pool it stopped in.

Lengths of pieces may be asked for in shares (buckets). Every bucket goes through its own documents at its own pace; a
pool takes of each in proportion to its share and packs them together, so that short pieces fill what long ones leave.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from qwen3_jax.batch import Batch, TopPredictions
from qwen3_jax.data.records import Predictions

POOL_DOCUMENTS = 2**16  # of one bucket, at most
_ROUNDS = 8  # of the Feistel network
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Piece = tuple[int, int, int]  # document, start, length
# (document, start, length) -> tokens int32 [n], loss mask bool [n] or None, and predictions [n, k] if there are any
Read = Callable[
  [int, int, int],
  tuple[np.ndarray, np.ndarray | None] | tuple[np.ndarray, np.ndarray | None, Predictions | None],
]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Packed rows: row r holds pieces offsets[r] to offsets[r + 1]; piece p is `lengths[p]` tokens of a document."""

  documents: np.ndarray  # int64 [P]
  starts: np.ndarray  # int64 [P]
  lengths: np.ndarray  # int64 [P]
  offsets: np.ndarray  # int64 [R + 1]
  tokens: np.ndarray  # int64 [R]: tokens in each row

  def __len__(self) -> int:
    return len(self.tokens)

  def row(self, r: int) -> list[Piece]:
    """Each piece of row `r`."""
    pieces = slice(self.offsets[r], self.offsets[r + 1])
    return list(
      zip(self.documents[pieces].tolist(), self.starts[pieces].tolist(), self.lengths[pieces].tolist(), strict=True)
    )


class Position(NamedTuple):
  """How far a bucket has been taken into pools."""

  epoch: int = 0
  place: int = 0  # of the next document in the epoch's order
  tokens: int = 0  # so far


class Pool(NamedTuple):
  """What `Packer.plan` returns."""

  rows: Rows  # in the order in which they are trained on
  end: tuple[Position, ...]  # where the next pool starts


class Bucket:
  """The documents of a corpus that have pieces of `low` to `high` tokens, both inclusive, once cut at the window.

  Args:
    lengths: int [N], tokens of each document.
    window: tokens of a row.
    key: chooses the order of every epoch.
  """

  def __init__(self, lengths: np.ndarray, window: int, low: int, high: int, key: Iterable[int]):
    self.window = window
    self._lengths = lengths
    self._bounds = low, high
    self._key = tuple(key)
    blocks = np.array_split(lengths, len(lengths) // POOL_DOCUMENTS + 1)  # a corpus may have billions of documents
    inside = np.concatenate([self._tokens(block) > 0 for block in blocks])
    self._documents = None if inside.all() else np.flatnonzero(inside)  # None: all of them
    self.num_documents = int(np.count_nonzero(inside))

  def documents(self, position: Position) -> tuple[np.ndarray, np.ndarray]:
    """The next documents of the epoch, at most POOL_DOCUMENTS, and the tokens of their pieces: int64 [D] each."""
    places = np.arange(position.place, min(position.place + POOL_DOCUMENTS, self.num_documents))
    documents = permute(places, self.num_documents, (*self._key, position.epoch))
    if self._documents is not None:
      documents = self._documents[documents]
    return documents, self._tokens(self._lengths[documents])

  def pieces(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Document, start and length of each piece of `documents`: int64 [P]."""
    documents, starts, lengths = cut(documents, self._lengths[documents], self.window)
    inside = self._inside(lengths)
    return documents[inside], starts[inside], lengths[inside]

  def _inside(self, lengths: np.ndarray) -> np.ndarray:
    return (lengths >= self._bounds[0]) & (lengths <= self._bounds[1])

  def _tokens(self, lengths: np.ndarray) -> np.ndarray:
    """Of documents of such lengths, the tokens that lie in pieces of this bucket: int64."""
    lengths = lengths.astype(np.int64)
    rests = lengths % self.window
    return (lengths - rests) * self._inside(np.asarray(self.window)) + rests * self._inside(rests)


class Packer:
  """Plans the rows of one corpus, pool by pool.

  A pool ends before any bucket would start on its next epoch, so every document of a bucket comes once before any
  comes again.

  Args:
    buckets: what to pack, at least one, none of them empty.
    weights: the share of the tokens of each bucket, relative.
    key: chooses the order of the rows.
  """

  def __init__(self, buckets: Sequence[Bucket], weights: Sequence[float], key: Iterable[int]):
    self._buckets = buckets
    self._weights = weights
    self._key = tuple(key)
    self.start = (Position(),) * len(buckets)

  def plan(self, start: Sequence[Position]) -> Pool:
    """The pool that begins where `start` says for each bucket. Token counts are within a document of the shares."""
    available = [bucket.documents(position) for bucket, position in zip(self._buckets, start)]
    # Tokens a bucket has given before each of its documents and after the last one.
    tokens = [at.tokens + np.cumsum(np.insert(counts, 0, 0)) for at, (_, counts) in zip(start, available)]
    limit = min(given[-1] / weight for given, weight in zip(tokens, self._weights))
    pieces, end = [], []
    for i, (bucket, weight) in enumerate(zip(self._buckets, self._weights)):
      taken = int(np.searchsorted(tokens[i][:-1] / weight, limit))  # those that begin before the limit
      pieces.append(bucket.pieces(available[i][0][:taken]))
      epoch, place = divmod(start[i].epoch * bucket.num_documents + start[i].place + taken, bucket.num_documents)
      end.append(Position(epoch, place, int(tokens[i][taken])))
    key = (*self._key, *(number for at in start for number in (at.epoch, at.place)))
    documents, starts, lengths = (np.concatenate(arrays) for arrays in zip(*pieces))
    return Pool(pack(documents, starts, lengths, self._buckets[0].window, key), tuple(end))


def key_of(seed: int, name: str) -> tuple[int, int]:
  """A key for the stream `name` of a run."""
  return seed, zlib.crc32(name.encode())


def permute(places: np.ndarray, size: int, key: Iterable[int]) -> np.ndarray:
  """Images of `places` under a pseudo-random permutation of 0..size-1 chosen by `key`: int64, like `places`.

  A Feistel network over the next power of four (at least 64), repeated on what falls outside. It depends on no
  library's random numbers, so the order of a run survives upgrades.
  """
  half = np.uint64(max((size - 1).bit_length() + 1, 6) // 2)
  low = (np.uint64(1) << half) - np.uint64(1)
  state = np.zeros(1, np.uint64)
  for value in key:
    state = _mix((state + _GOLDEN) ^ np.uint64(value % 2**64))
  round_keys = _mix(state + _GOLDEN * np.arange(1, _ROUNDS + 1, dtype=np.uint64))
  images = places.astype(np.uint64)
  outside = np.arange(len(images))
  while len(outside):
    left, right = images[outside] >> half, images[outside] & low
    for round_key in round_keys:
      left, right = right, left ^ (_mix(right ^ round_key) & low)
    images[outside] = (left << half) | right
    outside = outside[images[outside] >= size]
  return images.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
  """A bijection of 64-bit words in which every input bit moves every output bit (the finaliser of SplitMix64)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def cut(documents: np.ndarray, lengths: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Documents into pieces of `window` tokens and a rest: document, start and length of each piece, int64 [P]."""
  lengths = lengths.astype(np.int64)
  counts = -(-lengths // window)
  of_document = np.repeat(np.arange(len(lengths)), counts)
  starts = (np.arange(len(of_document)) - np.repeat(np.cumsum(counts) - counts, counts)) * window
  return documents[of_document], starts, np.minimum(lengths[of_document] - starts, window)


def pack(documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray, window: int, key: Iterable[int]) -> Rows:
  """Rows of at most `window` tokens that hold every piece once, in an order chosen by `key`."""
  row_of, count = best_fit(lengths, window)
  row_of = permute(np.arange(count), count, key)[row_of]
  by_row = np.argsort(row_of, kind="stable")
  row_of, lengths = row_of[by_row], lengths[by_row]
  return Rows(
    documents=documents[by_row],
    starts=starts[by_row],
    lengths=lengths,
    offsets=np.searchsorted(row_of, np.arange(count + 1)),
    tokens=np.bincount(row_of, lengths, count).astype(np.int64),
  )


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
  """Best-fit decreasing bin packing: the bin of each piece, int64 [P], and the number of bins.

  Pieces of one length are placed together: the bins with the least sufficient room take as many as fit. `lengths` are
  between 1 and `capacity`.
  """
  order = np.argsort(-lengths, kind="stable")
  distinct, counts = np.unique(lengths, return_counts=True)
  bins = np.empty(len(lengths), np.int64)  # in `order`
  with_room: dict[int, list[int]] = {}  # room left -> bins that have exactly so much
  rooms = 0  # bit r is set where with_room[r] holds bins
  used = begin = 0
  for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist()):
    while count:
      fitting = rooms >> length
      room = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
      each = room // length
      needed = -(-count // each)
      if fitting:
        candidates = with_room[room]
        chosen = candidates[-needed:]
        del candidates[-needed:]
        if not candidates:
          rooms ^= 1 << room
      else:
        chosen = list(range(used, used + needed))
        used += needed
      placed = min(len(chosen) * each, count)
      bins[begin : begin + placed] = np.repeat(chosen, each)[:placed] if placed > 1 else chosen[0]
      full, rest = divmod(placed, each)
      for left, ids in ((room - each * length, chosen[:full]), (room - rest * length, chosen[full:])):
        if left and ids:
          with_room.setdefault(left, []).extend(ids)
          rooms |= 1 << left
      begin += placed
      count -= placed
  result = np.empty_like(bins)
  result[order] = bins
  return result, used


def empty_batch(rows: int, window: int, top_k: int = 0) -> Batch:
  """A batch of padding: int32 and float32 zeros [rows, window]; no predictions, `top_k` for a token."""
  integers = (np.zeros((rows, window), np.int32) for _ in range(4))
  weights = np.zeros((rows, window), np.float32)
  top = None
  if top_k:
    top = TopPredictions(np.full((rows, window, top_k), -1, np.int32), np.zeros((rows, window, top_k), np.float32))
  return Batch(next(integers), next(integers), weights, next(integers), next(integers), top=top)


def write_row(batch: Batch, b: int, pieces: Iterable[Piece], read: Read) -> None:
  """Fills row `b` of an empty batch with pieces.

  The target of a piece's last token is the document's next token, of weight 0 where the document ends. A document's
  loss mask says which of its tokens count as targets; predictions are of the targets, too.
  """
  at = 0
  for segment, (document, start, length) in enumerate(pieces, 1):
    tokens, mask, *predictions = read(document, start, length + 1)
    place, targets = slice(at, at + length), slice(at, at + len(tokens) - 1)
    batch.tokens[b, place] = tokens[:length]
    batch.targets[b, targets] = tokens[1:]
    batch.loss_weights[b, targets] = 1 if mask is None else mask[1:]
    if batch.top is not None and predictions and predictions[0] is not None:
      batch.top.ids[b, targets] = predictions[0].ids[1:]
      batch.top.log_probabilities[b, targets] = predictions[0].log_probabilities[1:]
    batch.positions[b, place] = np.arange(length)
    batch.segment_ids[b, place] = segment
    at += length
