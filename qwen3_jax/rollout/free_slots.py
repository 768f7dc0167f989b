"""Where there is room for requests."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from qwen3_jax.rollout.engine_sequence import EngineSequence


class FreeSlots:
  """The free slots of each shard, and the prompts that its others hold."""

  def __init__(self, slots: Sequence[EngineSequence | None], of_shard: int):
    self._of_shard = of_shard
    self._free: list[collections.deque[int]] = [collections.deque() for _ in range(len(slots) // of_shard)]
    self._prompts: dict[bytes, set[int]] = {}  # shards that hold a prompt
    for slot, sequence in enumerate(slots):
      if sequence is None:
        self._free[slot // of_shard].append(slot)
      else:
        self._prompts.setdefault(sequence.prompt, set()).add(slot // of_shard)

  def best(self, sequence: EngineSequence, has_room: Callable[[int, int, int], bool]) -> int | None:
    """A free slot that has room [of `SlotCache`], in a shard that holds the same prompt or has most free ones."""
    tokens = len(sequence.tokens) + 1
    firsts = [free[0] for free in self._free if free and has_room(free[0], tokens, self._of_shard - len(free))]
    same = self._prompts.get(sequence.prompt, set())
    shard = lambda slot: slot // self._of_shard
    key = lambda slot: (shard(slot) not in same, -len(self._free[shard(slot)]), slot)
    return min(firsts, key=key, default=None)

  def fill(self, slot: int, sequence: EngineSequence) -> None:
    shard = slot // self._of_shard
    if slot in self._free[shard]:  # a further turn has its slot already
      self._free[shard].remove(slot)
    self._prompts.setdefault(sequence.prompt, set()).add(shard)
