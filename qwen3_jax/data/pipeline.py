"""The grain pipeline: rows of several corpora, interleaved by share of tokens, read ahead in background threads.

The global sequence of rows is a pure function of (seed, mixture, sequence length, length buckets); row r belongs to
step r // batch_size. Every process plans all rows, which needs lengths only, and reads its own: those that its devices
hold. The state of an iterator is therefore the same on every process, restores on any number of them, and stays small:
where the current pool of each corpus starts, and which of its rows is next.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from qwen3_jax.batch import Batch
from qwen3_jax.data.packing import (
  POOL_DOCUMENTS,
  Bucket,
  Packer,
  Piece,
  Pool,
  Position,
  Read,
  cut,
  empty_batch,
  key_of,
  pack,
  permute,
  write_row,
)
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.records import DataError, first_line

PREFETCHED_BATCHES = 4
_READ_THREADS = 8
_STATE_VERSION = 2

LengthBucket = tuple[int, int, float]  # min and max tokens of a piece, both inclusive, and share of the tokens
PlannedRow = tuple[Read, list[Piece]]  # how to read the documents, and which pieces of them


def train_batches(
  mixture: Mapping[str, tuple[PreparedCorpus, float]],
  *,
  sequence_length: int,
  batch_size: int,
  seed: int,
  length_buckets: Sequence[LengthBucket] = (),
  rows: Sequence[int] | None = None,
  top_k: int | None = None,
) -> BatchIterator:
  """An endless iterator of training batches: this process's rows [len(rows), sequence_length].

  Every epoch of a corpus is shuffled anew. Raises DataError for a mixture that cannot be served.

  Args:
    mixture: corpus name -> (corpus, share of the tokens). Shares are relative.
    sequence_length: tokens of a row, T; longer documents are cut.
    batch_size: rows of a step over all processes.
    seed: the only source of randomness.
    length_buckets: (min, max, share of the tokens) on the length of pieces, inclusive; a bound that two buckets share
      belongs to the lower one. Rows mix buckets; pieces outside all of them are left out. Corpora without pieces in a
      bucket leave their part of it to the others.
    rows: which of a step's rows to read, in 0 .. batch_size - 1 and in order; None is all.
    top_k: stored predictions of a token to read into `Batch.top`; None is as many as any corpus stores, 0 reads none.
      What a corpus does not store has ids -1.
  """
  local = _local_rows(batch_size, rows)
  if not mixture:
    raise DataError("mixture: no corpus; expected at least one")
  if sequence_length < 2:
    raise DataError(f"sequence_length: {sequence_length}; expected at least 2")
  for name, (corpus, share) in mixture.items():
    if not share > 0:
      raise DataError(f"mixture.{name}: share {share}; expected more than 0")
    if not corpus.tokens_total:
      raise DataError(f"mixture.{name}: {corpus.path / corpus.split} holds no tokens")
  top_k = _predictions({name: corpus for name, (corpus, _) in mixture.items()}, top_k)
  streams = _streams(mixture, sequence_length, seed, _disjoint(length_buckets) or [(1, sequence_length, 1.0)], top_k)
  described = {
    "version": _STATE_VERSION,
    "seed": seed,
    "sequence_length": sequence_length,
    "length_buckets": [list(bucket) for bucket in length_buckets],
    "corpora": {
      name: {
        "share": float(share),
        "documents": len(corpus),
        "tokens": corpus.tokens_total,
        "tokenizer": corpus.manifest["tokenizer"],
      }
      for name, (corpus, share) in sorted(mixture.items())
    },
  }
  return BatchIterator(
    _Steps(streams, sequence_length, batch_size, local), _RowReader(sequence_length, top_k), described
  )


class BatchIterator(Iterator[Batch]):
  """Training batches, prefetched. `get_state` speaks of the batch returned last; batches read ahead do not count."""

  def __init__(self, steps: _Steps, reader: _RowReader, described: dict[str, Any]):
    self._described = described
    self._reader = reader
    batches = ThreadPrefetchIterDataset(steps.map(reader.batch), prefetch_buffer_size=PREFETCHED_BATCHES)
    self._iterator = iter(batches)

  def __next__(self) -> Batch:
    try:
      return next(self._iterator)
    except DataError as error:  # grain appends lines about its tracebacks
      raise DataError(first_line(error)) from None

  def get_state(self) -> dict[str, Any]:
    """JSON-able, small, the same on every process."""
    return {"data": self._described, "position": self._iterator.get_state()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues after the batch at which `state` was taken, on any number of processes and with any batch size.

    Raises DataError if the state was taken over other data, another seed or another sequence length.
    """
    differences = list(_differences(state.get("data", {}), self._described))
    if differences:
      raise DataError(f"state of the data iterator does not fit this run: {'; '.join(differences)}")
    self._iterator.set_state(state["position"])

  def close(self) -> None:
    """Stops the background threads; idempotent."""
    self._iterator.close()
    self._reader.close()


def validation_batches(
  corpora: Mapping[str, PreparedCorpus],
  *,
  sequence_length: int,
  batch_size: int,
  num_batches: int,
  rows: Sequence[int] | None = None,
  top_k: int | None = None,
) -> dict[str, list[Batch]]:
  """Domain -> at most `num_batches` batches, the same in every run; shapes, `rows`, `top_k` as in `train_batches`.

  Every domain that has documents appears, over all corpora. A small domain has fewer batches, the last one filled up
  with rows of weight zero.
  """
  local = _local_rows(batch_size, rows)
  ordered = [corpus for _, corpus in sorted(corpora.items())]
  starts = np.cumsum([0] + [len(corpus) for corpus in ordered])  # number of each corpus's first document

  top_k = _predictions(corpora, top_k)
  reads = [_read(corpus, top_k) for corpus in ordered]

  def read(document: int, start: int, length: int):
    corpus = int(np.searchsorted(starts, document, side="right")) - 1
    return reads[corpus](document - int(starts[corpus]), start, length)

  reader = _RowReader(sequence_length, top_k)
  result = {}
  for domain in sorted({name for corpus in ordered for name in corpus.domain_names}):
    of_domain = [_documents_of(corpus, domain) for corpus in ordered]
    documents = np.concatenate([start + ids for start, ids in zip(starts, of_domain)])
    lengths = np.concatenate([corpus.lengths[ids] for corpus, ids in zip(ordered, of_domain)])
    if lengths.max(initial=0) < 2:
      continue  # nothing to predict
    drawn = permute(np.arange(min(len(documents), POOL_DOCUMENTS)), len(documents), (0,))
    packed = pack(*cut(documents[drawn], lengths[drawn], sequence_length), sequence_length, (0,))
    result[domain] = [
      reader.batch([(read, packed.row(first + r) if first + r < len(packed) else []) for r in local])
      for first in range(0, min(len(packed), num_batches * batch_size), batch_size)
    ]
  reader.close()
  return result


@dataclasses.dataclass(frozen=True)
class _Stream:
  """Rows of one corpus."""

  name: str
  read: Read
  weight: float  # share of the tokens
  packer: Packer


@dataclasses.dataclass
class _StreamPosition:
  """How far a stream has been read."""

  start: Sequence[Position]  # of the current pool
  row: int = 0  # the next one of that pool
  tokens: int = 0  # delivered so far
  pool: Pool | None = None  # planned when first needed

  def next_row(self, stream: _Stream) -> PlannedRow:
    if self.pool is None:
      self.pool = stream.packer.plan(self.start)
    if self.row == len(self.pool.rows):
      self.start, self.row = self.pool.end, 0
      self.pool = stream.packer.plan(self.start)
    rows = self.pool.rows
    self.row += 1
    self.tokens += int(rows.tokens[self.row - 1])
    return stream.read, rows.row(self.row - 1)


class _Steps(grain.IterDataset[list[PlannedRow]]):
  """The rows `local` of every step, not read yet."""

  def __init__(self, streams: list[_Stream], sequence_length: int, batch_size: int, local: Sequence[int]):
    super().__init__()
    self.streams = streams
    self.sequence_length = sequence_length
    self.batch_size = batch_size
    self.local = local

  def __iter__(self) -> _StepIterator:
    return _StepIterator(self)


class _StepIterator(grain.DatasetIterator[list[PlannedRow]]):
  def __init__(self, steps: _Steps):
    super().__init__()
    self._steps = steps
    self._positions = [_StreamPosition(stream.packer.start) for stream in steps.streams]

  def __next__(self) -> list[PlannedRow]:
    rows = [self._next_row() for _ in range(self._steps.batch_size)]
    return [rows[r] for r in self._steps.local]

  def _next_row(self) -> PlannedRow:
    # The stream that lags most behind its share once it has half a row more (Webster's method of apportionment):
    # after any number of rows each stream is within about a row of its share.
    half = self._steps.sequence_length / 2
    streams, positions = self._steps.streams, self._positions
    chosen = min(range(len(streams)), key=lambda i: (positions[i].tokens + half) / streams[i].weight)
    return positions[chosen].next_row(streams[chosen])

  def get_state(self) -> dict[str, Any]:
    return {
      stream.name: {"start": [list(at) for at in position.start], "row": position.row, "tokens": position.tokens}
      for stream, position in zip(self._steps.streams, self._positions)
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._positions = [
      _StreamPosition([Position(*at) for at in saved["start"]], saved["row"], saved["tokens"])
      for saved in (state[stream.name] for stream in self._steps.streams)
    ]


class _RowReader:
  """Reads the documents of planned rows, several rows at a time: remote storage has latency to hide."""

  def __init__(self, sequence_length: int, top_k: int):
    self._sequence_length, self._top_k = sequence_length, top_k
    self._threads = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="read-rows")

  def batch(self, rows: list[PlannedRow]) -> Batch:
    batch = empty_batch(len(rows), self._sequence_length, self._top_k)
    list(self._threads.map(lambda b: write_row(batch, b, rows[b][1], rows[b][0]), range(len(rows))))
    return batch

  def close(self) -> None:
    self._threads.shutdown(cancel_futures=True)


def _streams(
  mixture: Mapping[str, tuple[PreparedCorpus, float]],
  sequence_length: int,
  seed: int,
  buckets: Sequence[LengthBucket],
  top_k: int,
) -> list[_Stream]:
  corpora = sorted(mixture.items())
  found: dict[str, list[tuple[Bucket, float]]] = {name: [] for name in mixture}  # with shares of all tokens
  for low, high, bucket_share in buckets:
    candidates = [
      (name, share, Bucket(corpus.lengths, sequence_length, low, high, (*key_of(seed, name), low)))
      for name, (corpus, share) in corpora
    ]
    candidates = [candidate for candidate in candidates if candidate[2].num_documents]
    if not candidates:
      raise DataError(
        f"length_buckets: no document of {', '.join(mixture)} has a piece of {low} to {high} tokens "
        f"at sequence_length {sequence_length}"
      )
    total = sum(share for _, share, _ in candidates)
    for name, share, bucket in candidates:
      found[name].append((bucket, share / total * bucket_share))
  streams = []
  for name, (corpus, _) in corpora:
    if not found[name]:
      raise DataError(f"mixture.{name}: no document has a piece that falls into any of the length buckets")
    of_corpus, weights = zip(*found[name])
    packer = Packer(of_corpus, weights, key_of(seed, name))
    streams.append(_Stream(name, _read(corpus, top_k), sum(weights), packer))
  return streams


def _predictions(corpora: Mapping[str, PreparedCorpus], top_k: int | None) -> int:
  """How many predictions of a token are read."""
  stored = {name: corpus.top_k for name, corpus in sorted(corpora.items())}
  most = max(stored.values(), default=0)
  if top_k is None:
    return most
  if not 0 <= top_k <= most:
    there = ", ".join(f"{name} {k}" for name, k in stored.items())
    raise DataError(f"top_k: {top_k} predictions of a token; the corpora store at most {most} ({there})")
  return top_k


def _read(corpus: PreparedCorpus, top_k: int) -> Read:
  """With predictions where there are any, and any are wanted."""
  return functools.partial(corpus.read_with_predictions, top_k=top_k) if top_k and corpus.top_k else corpus.read


def _disjoint(buckets: Sequence[LengthBucket]) -> list[LengthBucket]:
  """The buckets by length, checked; a bound that two share is left to the lower one."""
  result: list[LengthBucket] = []
  for low, high, share in sorted(buckets):
    if not 0 <= low <= high or not share > 0:
      raise DataError(f"length_buckets: ({low}, {high}, {share}); expected 0 <= min <= max and a share above 0")
    if result and low < result[-1][1]:
      raise DataError(f"length_buckets: {result[-1][0]}..{result[-1][1]} and {low}..{high} overlap")
    result.append((low + 1 if result and low == result[-1][1] else low, high, share))
  return result


def _local_rows(batch_size: int, rows: Sequence[int] | None) -> Sequence[int]:
  if batch_size < 1:
    raise DataError(f"batch_size: {batch_size}; expected at least 1")
  if rows is None:
    return range(batch_size)
  if not rows or sorted({*rows}) != [*rows] or rows[0] < 0 or rows[-1] >= batch_size:
    raise DataError(f"rows: {[*rows]}; expected different numbers from 0 to {batch_size - 1}, in order")
  return rows


def _documents_of(corpus: PreparedCorpus, domain: str) -> np.ndarray:
  """Numbers of the corpus's documents in a domain: int64."""
  if domain not in corpus.domain_names:
    return np.zeros(0, np.int64)
  return np.flatnonzero(corpus.domains == corpus.domain_names.index(domain))


def _differences(stored: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
  for key in sorted({*stored, *current}):
    then, now = stored.get(key, "absent"), current.get(key, "absent")
    if isinstance(then, Mapping) and isinstance(now, Mapping):
      yield from _differences(then, now, f"{prefix}{key}.")
    elif then != now:
      yield f"{prefix}{key} was {then}, now {now}"
