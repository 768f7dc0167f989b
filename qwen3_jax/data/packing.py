"""Packing: which pieces of which documents fill a row, and the arrays of a row.

The documents of an epoch come in pools of POOL_DOCUMENTS. A pool is planned from lengths alone, independently of every
other, so a run over billions of documents holds one pool at a time and resumes by planning the pool it stopped in.

Documents are permuted over the whole corpus by a keyed bijection of their numbers (no list of them is stored), cut at
the window, and packed best-fit in decreasing order of length (Ding et al. 2024, "Fewer Truncations Improve Language
Modeling"), all pieces of one length at a time (after Krell et al. 2021, "Efficient Sequence Packing without
Cross-contamination").
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from qwen3_jax.batch import Batch

POOL_DOCUMENTS = 2**16
_ROUNDS = 8  # of the Feistel network
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

# (min, max, share): lengths of pieces, both inclusive, and the bucket's share of the tokens.
LengthBucket = tuple[int, int, float]
Piece = tuple[int, int, int]  # document, start, length
# (document, start, length) -> tokens int32 [n], loss mask bool [n] or None
Read = Callable[[int, int, int], tuple[np.ndarray, np.ndarray | None]]


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


class Packer:
  """Plans the rows of one corpus, pool by pool. Pool p belongs to epoch p // pools_per_epoch.

  Args:
    lengths: int [N], tokens of each document.
    window: tokens of a row.
    seed: the order is a function of `seed` and `name` alone.
    name: tells streams of one run apart.
    buckets, bucket: keep only pieces whose length falls into `buckets[bucket]`; see `bucket_of`.
  """

  def __init__(
    self,
    lengths: np.ndarray,
    window: int,
    *,
    seed: int,
    name: str = "",
    buckets: Sequence[LengthBucket] = (),
    bucket: int = 0,
  ):
    self._lengths = lengths
    self._window = window
    self._key = (seed, zlib.crc32(name.encode()))
    self._buckets = buckets
    self._bucket = bucket
    # Documents that have a piece in the bucket; None is all of them.
    self._documents = documents_in_bucket(lengths, window, buckets, bucket) if buckets else None
    self.num_documents = len(lengths if self._documents is None else self._documents)
    self.pools_per_epoch = -(-self.num_documents // POOL_DOCUMENTS)

  def plan(self, pool: int) -> Rows:
    """Rows of a pool, in the order in which they are trained on."""
    epoch, pool_of_epoch = divmod(pool, self.pools_per_epoch)
    first = pool_of_epoch * POOL_DOCUMENTS
    places = np.arange(first, min(first + POOL_DOCUMENTS, self.num_documents))
    documents = permute(places, self.num_documents, (*self._key, epoch))
    if self._documents is not None:
      documents = self._documents[documents]
    pieces = cut(documents, self._lengths[documents], self._window)
    if self._buckets:
      inside = bucket_of(pieces[2], self._buckets) == self._bucket
      pieces = (pieces[0][inside], pieces[1][inside], pieces[2][inside])
    return pack(*pieces, self._window, (*self._key, epoch, pool_of_epoch))


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


def bucket_of(lengths: np.ndarray, buckets: Sequence[LengthBucket]) -> np.ndarray:
  """Index of the bucket of each length, -1 for none. A bound that two buckets share belongs to the lower one."""
  bucket = np.full(lengths.shape, -1, np.int64)
  for i in sorted(range(len(buckets)), key=lambda i: -buckets[i][0]):
    bucket[(lengths >= buckets[i][0]) & (lengths <= buckets[i][1])] = i
  return bucket


def documents_in_bucket(lengths: np.ndarray, window: int, buckets: Sequence[LengthBucket], bucket: int) -> np.ndarray:
  """Documents that have a piece in `buckets[bucket]` once cut at the window: int64."""
  whole = (lengths >= window) & (bucket_of(np.asarray([window]), buckets)[0] == bucket)
  return np.flatnonzero(whole | (bucket_of(lengths % window, buckets) == bucket))


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


def empty_batch(rows: int, window: int) -> Batch:
  """A batch of padding: int32 and float32 zeros [rows, window]."""
  integers = (np.zeros((rows, window), np.int32) for _ in range(4))
  return Batch(next(integers), next(integers), np.zeros((rows, window), np.float32), next(integers), next(integers))


def write_row(batch: Batch, b: int, pieces: Iterable[Piece], read: Read) -> None:
  """Fills row `b` of an empty batch with pieces.

  The target of a piece's last token is the document's next token, of weight 0 where the document ends. A document's
  loss mask says which of its tokens count as targets.
  """
  at = 0
  for segment, (document, start, length) in enumerate(pieces, 1):
    tokens, mask = read(document, start, length + 1)
    place, targets = slice(at, at + length), slice(at, at + len(tokens) - 1)
    batch.tokens[b, place] = tokens[:length]
    batch.targets[b, targets] = tokens[1:]
    batch.loss_weights[b, targets] = 1 if mask is None else mask[1:]
    batch.positions[b, place] = np.arange(length)
    batch.segment_ids[b, place] = segment
    at += length
