"""Which tokens of which prompts are prefilled together, in arrays of few shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qwen3_jax.rollout.engine_sequence import EngineSequence
from qwen3_jax.rollout.engine_settings import EngineSettings

_SHORTEST = 8  # tokens


class PrefillBatch(NamedTuple):
  tokens: np.ndarray  # int32 [A, T]: a row's are its last `counts`
  slots: np.ndarray  # int32 [A], and so the others
  starts: np.ndarray  # tokens of the slot that are cached already
  counts: np.ndarray


class PrefillBatches:
  def __init__(self, settings: EngineSettings, shards: int):
    self._shards, self._slots_of_shard = shards, settings.slots // shards
    longest = min(settings.prefill_length, settings.max_length)
    # Prompts at a time: one a shard, two, ...; tokens of a prompt at a time.
    self._row_counts = _doubling(shards, settings.prefill_rows)
    self._lengths = _doubling(min(_SHORTEST, longest), longest)

  def shapes(self) -> Iterator[PrefillBatch]:
    """One batch, which writes nothing, of every shape."""
    for T in self._lengths:
      for A in self._row_counts:
        yield PrefillBatch(np.zeros((A, T), np.int32), *(np.zeros(A, np.int32) for _ in range(3)))

  def of(self, sequences: Sequence[EngineSequence]) -> Iterator[PrefillBatch]:
    """All that is to be prefilled of sequences that have slots, which then counts as cached."""
    D = self._shards
    todo: list[list[EngineSequence]] = [[] for _ in range(D)]
    for sequence in sequences:
      if sequence.to_prefill > 0:
        todo[sequence.known_slot // self._slots_of_shard].append(sequence)
    while any(todo):
      most_rows = D * max(map(len, todo))
      A = next((n for n in self._row_counts if n >= most_rows), self._row_counts[-1])
      rows: list[EngineSequence | None] = []
      for of_shard in todo:
        of_shard.sort(key=lambda sequence: sequence.to_prefill)  # alike lengths together
        some = of_shard[-(A // D) :]
        rows += [*some, *[None] * (A // D - len(some))]
      yield self._batch(rows)
      todo = [[sequence for sequence in of_shard if sequence.to_prefill > 0] for of_shard in todo]

  def _batch(self, rows: Sequence[EngineSequence | None]) -> PrefillBatch:
    A = len(rows)
    most = max(sequence.to_prefill for sequence in rows if sequence is not None)
    T = next((n for n in self._lengths if n >= most), self._lengths[-1])
    tokens = np.zeros((A, T), np.int32)
    slots, starts, counts = (np.zeros(A, np.int32) for _ in range(3))
    for a, sequence in enumerate(rows):
      slots[a] = a // (A // self._shards) * self._slots_of_shard  # of the row's shard, in any case
      if sequence is None:
        continue
      n = min(T, sequence.to_prefill)
      tokens[a, T - n :] = sequence.tokens[sequence.cached : sequence.cached + n]
      slots[a], starts[a], counts[a] = sequence.known_slot, sequence.cached, n
      sequence.cached += n
    return PrefillBatch(tokens, slots, starts, counts)


def _doubling(first: int, last: int) -> list[int]:
  counts = [first]
  while counts[-1] < last:
    counts.append(min(2 * counts[-1], last))
  return counts
