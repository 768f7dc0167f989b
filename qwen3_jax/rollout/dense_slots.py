"""A dense cache with slots of one length, which follows the longest sequence: a CPU reads every slot to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qwen3_jax.models.cached import Place
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.programs import Programs
from qwen3_jax.rollout.slot_cache import Copy

_SHORTEST = 64  # tokens


class DenseSlots:
  """Implements `SlotCache`."""

  table = None

  def __init__(self, programs: Programs, settings: EngineSettings, shards: int):
    self._programs, self._settings = programs, settings
    self._shards, self._slots_of_shard = shards, settings.slots // shards
    self._lengths = _lengths(settings.max_length)
    self.arrays: Any = programs.empty_dense(settings.slots, self._lengths[0])

  def place(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Place:
    arrays: tuple[Any, ...] = (slots, starts, counts)
    return Place(*arrays)

  def has_room(self, slot: int, tokens: int, others: int) -> bool:
    return True

  def grow(self, slot: int, tokens: int) -> bool:
    return True

  def release(self, slot: int) -> None:
    pass

  def follow(self, longest: int) -> None:
    length = self._length(longest)
    while self.arrays.length < length:
      self._resize(1)
    while 2 * self.arrays.length >= 3 * length:  # not at each turn of a length that goes up and down
      self._resize(-1)

  def steps(self, longest: int, most: int) -> int:
    room = self._length(longest) - longest
    return min(most, room) if room >= self._settings.steps else most

  def _length(self, longest: int) -> int:
    """Of the cache for a longest sequence of so many tokens."""
    enough = min(longest + self._settings.steps, self._settings.max_length)
    return next(length for length in self._lengths if length >= enough)

  def _resize(self, by: int) -> None:
    """By neighbours, so that few programs do it."""
    self.arrays = self._programs.resize(self.arrays, self._lengths[self._lengths.index(self.arrays.length) + by])

  def copy(self, copies: Sequence[Copy]) -> None:
    A = self._settings.prefill_rows
    for start in range(0, len(copies), A):
      sources, targets = (np.zeros((self._shards, A), np.int32) for _ in range(2))
      for a, copy in enumerate(copies[start : start + A]):
        shard, target = divmod(copy.target, self._slots_of_shard)
        sources[shard, a], targets[shard, a] = copy.source % self._slots_of_shard, target
      self.arrays = self._programs.copy(self.arrays, sources, targets)

  def clear(self, slot: int) -> None:
    self.arrays = self._programs.clear(self.arrays, np.int32(slot))

  def shapes(self) -> Iterator[None]:
    self._shrink()
    for length in self._lengths:
      if length > self.arrays.length:
        self._resize(1)
      self.copy([Copy(0, 0, 0)])
      self.clear(0)
      yield
    self._shrink()

  def _shrink(self) -> None:
    while self.arrays.length > self._lengths[0]:
      self._resize(-1)


def _lengths(longest: int) -> list[int]:
  """64, 96, 128, 192, 256, ...; one where two shorter ones would save less than compiling for them takes."""
  if longest <= 2 * _SHORTEST:
    return [longest]
  doubled = [_SHORTEST << i for i in range(longest.bit_length())]
  return [n for length in doubled for n in (length, length * 3 // 2) if n < longest] + [longest]
