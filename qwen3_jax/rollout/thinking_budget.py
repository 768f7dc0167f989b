"""Where an answer stands between <think> and </think>, and what is inserted when a budget is used up.

Qwen3 report, section 4.3: at the limit thinking is halted, a sentence closes it, and the model answers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwen3_jax.data.tokenizer import Tokenizer

STOP_THINKING = (
  "Considering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
  "</think>.\n\n"
)
NO_BUDGET = 2**30
BEFORE, INSIDE, AFTER = 0, 1, 2


class ThinkingTokens(NamedTuple):
  """Ids; a vocabulary without these tokens has -1, and no thinking."""

  start: int = -1
  end: int = -1
  sentence: tuple[int, ...] = ()  # STOP_THINKING
  turn: int = -1  # what every turn of a conversation opens with

  @classmethod
  @functools.lru_cache(maxsize=8)
  def of(cls, tokenizer: Tokenizer) -> ThinkingTokens:
    names = tokenizer.special_tokens
    if "<think>" not in names or "</think>" not in names:
      return cls()
    return cls(
      names["<think>"], names["</think>"], tuple(tokenizer.encode(STOP_THINKING)), names.get("<|im_start|>", -1)
    )

  def following(self, phase: int, token: int) -> int:
    """The phase after a token of the answer."""
    if phase == BEFORE and token == self.start:
      return INSIDE
    return AFTER if token == self.end else phase

  def phase(self, prompt: list[int]) -> int:
    """Where an answer starts whose prompt may have opened the thinking, or opened and closed it."""
    for token in reversed(prompt if self.sentence else []):
      if token in (self.start, self.end, self.turn):
        return {self.start: INSIDE, self.end: AFTER}.get(token, BEFORE)
    return BEFORE

  def thinking(self, phase: int, tokens: Sequence[int]) -> slice | None:
    """Which tokens of an answer that starts in `phase` are its thinking, tags left out; None: it does not think.

    Thinking that nothing closes goes to the end. Closed thinking that nothing opened was opened out of sight, by a
    template: it goes from the start.
    """
    if phase == AFTER:
      return None
    closed = self.end in tokens
    end = tokens.index(self.end) if closed else len(tokens)
    if phase == BEFORE and self.start in tokens[:end]:
      return slice(tokens.index(self.start) + 1, end)
    return slice(0, end) if closed or phase == INSIDE else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Thinking:
  """Of R rows, int32 [R]."""

  phase: jax.Array
  thought: jax.Array  # tokens since <think>
  budget: jax.Array  # at most so many; NO_BUDGET: any number
  inserting: jax.Array  # the next token of the sentence, or -1
  halted: jax.Array  # 1 where the budget was used up

  def insert(self, ids: ThinkingTokens, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rows' next tokens, given what was drawn, and which token of the sentence each is, or -1.

    Where the budget is used up, all but </think> gives way to the sentence.
    """
    used_up = (self.inserting < 0) & (self.phase == INSIDE) & (self.thought >= self.budget) & (drawn != ids.end)
    place = jnp.where(used_up, 0, self.inserting)
    if not ids.sentence:
      return drawn, place
    sentence = jnp.asarray(ids.sentence, jnp.int32)
    return jnp.where(place >= 0, sentence[jnp.maximum(place, 0)], drawn), place

  def after(self, ids: ThinkingTokens, tokens: jax.Array, place: jax.Array) -> Thinking:
    """With one more token of every row, as `insert` gives them."""
    inserted = place >= 0
    complete = inserted & (place + 1 == len(ids.sentence))
    opens = ~inserted & (self.phase == BEFORE) & (tokens == ids.start)
    closes = ~inserted & (self.phase != AFTER) & (tokens == ids.end)
    phase = jnp.where(opens, INSIDE, jnp.where(closes | complete, AFTER, self.phase))
    thinks = ~inserted & (self.phase == INSIDE) & ~closes
    return Thinking(
      phase=phase.astype(jnp.int32),
      thought=self.thought + thinks,
      budget=self.budget,
      inserting=jnp.where(inserted & ~complete, place + 1, -1),
      halted=jnp.where(inserted, 1, self.halted),
    )
