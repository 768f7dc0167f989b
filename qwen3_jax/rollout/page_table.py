"""Which pages of the cache belong to which slot: kept on the host, sent along with each program."""

from __future__ import annotations

import numpy as np


class PageTable:
  """Pages of one layer (all layers use the same numbers), shared where slots begin with the same tokens.

  Slots lie in shards, each with pages of its own; numbers are within a shard.
  """

  def __init__(self, slots: int, shards: int, pages_per_shard: int, page_size: int, most: int):
    """`most`: pages that a slot can have."""
    self.page_size = page_size
    self.table = np.zeros((slots, most), np.int32)
    self._slots_per_shard = slots // shards
    self._free = [list(range(pages_per_shard))[::-1] for _ in range(shards)]
    self._owners = np.zeros((shards, pages_per_shard), np.int32)
    self._pages: list[list[int]] = [[] for _ in range(slots)]

  def shard(self, slot: int) -> int:
    return slot // self._slots_per_shard

  def free_pages(self, slot: int) -> int:
    """In the slot's shard."""
    return len(self._free[self.shard(slot)])

  def missing(self, slot: int, tokens: int) -> int:
    """Pages that a slot lacks for so many tokens."""
    return max(0, -(-tokens // self.page_size) - len(self._pages[slot]))

  def grow(self, slot: int, tokens: int) -> bool:
    """Gives a slot the pages for so many tokens; False, and nothing changed, if its shard has too few."""
    missing = self.missing(slot, tokens)
    if missing > self.free_pages(slot):
      return False
    for _ in range(missing):
      self._add(slot, self._free[self.shard(slot)].pop())
    return True

  def share(self, source: int, target: int, tokens: int) -> tuple[int, int] | None:
    """Lets `target`, which has no pages, begin with the first tokens of `source`; both are in one shard.

    Full pages are shared. A last page that is not full is not: its number and that of the page to copy it to are
    returned, if there is one. There must be a free page for it.
    """
    full, rest = divmod(tokens, self.page_size)
    for page in self._pages[source][:full]:
      self._add(target, page)
    if not rest:
      return None
    page = self._free[self.shard(target)].pop()
    self._add(target, page)
    return self._pages[source][full], page

  def release(self, slot: int) -> None:
    shard = self.shard(slot)
    for page in self._pages[slot]:
      self._owners[shard, page] -= 1
      if not self._owners[shard, page]:
        self._free[shard].append(page)
    self._pages[slot] = []
    self.table[slot] = 0

  def _add(self, slot: int, page: int) -> None:
    self.table[slot, len(self._pages[slot])] = page
    self._pages[slot].append(page)
    self._owners[self.shard(slot), page] += 1
