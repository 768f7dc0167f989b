"""What the engine knows of a request, from when it is submitted until its result is taken."""

from __future__ import annotations

import numpy as np

from qwen3_jax.rollout.decode import Rows
from qwen3_jax.rollout.request import Request, Result, request_key
from qwen3_jax.rollout.rows import Start


class EngineSequence:
  def __init__(self, id: int, request: Request):
    self.id = id
    self.request = request
    self.result = Result()
    self.tokens = list(request.prompt)  # prompt and answer
    self.prompt = np.asarray(request.prompt, np.int32).tobytes()  # quick to look up
    self.key = request_key(request.seed)
    self.slot: int | None = None
    self.cached = 0  # tokens in the slot's cache
    self.turn_start = len(self.tokens)  # where the answer that is being written starts
    self.row: Rows | None = None  # of one that had to give up its slot
    self.held = False
    self.decoding = False  # whether the slot's row on the devices is this request's

  @property
  def known_slot(self) -> int:
    """Of one that has a slot."""
    assert self.slot is not None
    return self.slot

  @property
  def to_prefill(self) -> int:
    """Tokens that are to be cached before it can be decoded: all but the last."""
    return len(self.tokens) - 1 - self.cached

  @property
  def is_fresh(self) -> bool:
    """Whether its prompt is all that is to be cached.

    A further turn, and one that goes on after it gave up its slot, has more cached, or to cache.
    """
    return self.cached == 0 and len(self.tokens) == len(self.request.prompt) > 1

  def start(self) -> Start:
    result = self.result
    generated = [token for token, sampled in zip(result.tokens, result.sampled) if sampled]
    return Start(self.request, self.key, self.tokens, generated)
