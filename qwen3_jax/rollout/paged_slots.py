"""A paged cache: a slot has the pages that its tokens take, and prompts that are alike share theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qwen3_jax.models.cached import Place
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.page_table import PageTable
from qwen3_jax.rollout.programs import Programs
from qwen3_jax.rollout.slot_cache import Copy


class PagedSlots:
  """Implements `SlotCache`, with `pages` for each shard, or enough of them for every slot.

  Raises ValueError where they do not hold one sequence of `max_length`.
  """

  def __init__(self, programs: Programs, settings: EngineSettings, shards: int, pages: int | None):
    most = -(-settings.max_length // settings.page_size)
    enough = settings.slots // shards * most
    pages = enough if pages is None else min(pages, enough)
    if pages < most:
      raise ValueError(
        f"cache_bytes={settings.cache_bytes} hold {pages} pages of {settings.page_size} tokens, fewer than the {most}"
        f" of one sequence of max_length={settings.max_length}"
      )
    self._programs, self._settings, self._shards = programs, settings, shards
    self.pages = PageTable(settings.slots, shards, pages, settings.page_size, most)
    self.arrays: Any = programs.empty_paged(shards, pages)

  @property
  def table(self) -> np.ndarray:
    return self.pages.table

  def place(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Place:
    arrays: tuple[Any, ...] = (None, starts, counts, self.table[slots])
    return Place(*arrays)

  def has_room(self, slot: int, tokens: int, others: int) -> bool:
    return others == 0 or self.pages.missing(slot, tokens) + others <= self.pages.free_pages(slot)

  def grow(self, slot: int, tokens: int) -> bool:
    return self.pages.grow(slot, tokens)

  def release(self, slot: int) -> None:
    self.pages.release(slot)

  def follow(self, longest: int) -> None:
    pass

  def steps(self, longest: int, most: int) -> int:
    return most

  def copy(self, copies: Sequence[Copy]) -> None:
    A = self._settings.prefill_rows
    for start in range(0, len(copies), A):
      sources, targets = self._nothing()
      for a, copy in enumerate(copies[start : start + A]):
        self.pages.release(copy.target)
        shard = self.pages.shard(copy.target)
        pair = self.pages.share(copy.source, copy.target, copy.tokens)
        if pair is not None:
          sources[shard, a], targets[shard, a] = pair
        self.pages.grow(copy.target, copy.tokens + 2)  # the last of its prompt, and one more
      if (targets >= 0).any():
        self.arrays = self._programs.copy(self.arrays, sources, targets)

  def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
    """Pages from and to, int32 [shards, A]; negative: none."""
    shape = (self._shards, self._settings.prefill_rows)
    return np.zeros(shape, np.int32), np.full(shape, -1, np.int32)

  def clear(self, slot: int) -> None:
    pass  # pages are read as far as they are written

  def shapes(self) -> Iterator[None]:
    self.arrays = self._programs.copy(self.arrays, *self._nothing())
    yield
