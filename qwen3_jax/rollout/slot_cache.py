"""The cache as the engine keeps it: arrays on the devices, and what the host knows of who has which part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from qwen3_jax.models.cached import Place


class Copy(NamedTuple):
  """The first tokens of a slot, to another of its shard that holds nothing yet."""

  source: int
  target: int
  tokens: int


class SlotCache(Protocol):
  arrays: Any  # what programs take, and give back changed

  @property
  def table(self) -> np.ndarray | None:
    """Pages of slots, int32 [R, pages]; None where there are none."""

  def place(self, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Place:
    """Where new tokens of some slots go."""

  def has_room(self, slot: int, tokens: int, others: int) -> bool:
    """Whether a slot can have so many tokens, and each of the `others` in its shard another page."""

  def grow(self, slot: int, tokens: int) -> bool:
    """Gives a slot room for so many tokens; False, and nothing changed, where there is none left."""

  def release(self, slot: int) -> None:
    """Takes a slot's room back."""

  def follow(self, longest: int) -> None:
    """Makes room for the longest sequence, of so many tokens, and the steps until the host looks again."""

  def steps(self, longest: int, most: int) -> int:
    """Decoding steps, up to `most`, after which the cache need not be a longer one, if it is worth it."""

  def copy(self, copies: Sequence[Copy]) -> None: ...

  def clear(self, slot: int) -> None:
    """Takes away what is not finite: it would spoil whoever comes next."""

  def shapes(self) -> Iterator[None]:
    """Gives the arrays each shape they can have, and runs the programs of this file in it: compiles them."""
