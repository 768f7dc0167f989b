"""An answer as it is written: pieces of text, thinking apart from response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.rollout.completion import Completion, completion
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.request import Request
from qwen3_jax.rollout.thinking_budget import AFTER, INSIDE, ThinkingTokens


class Piece(NamedTuple):
  kind: Literal["thinking", "response"]
  text: str


def stream(
  engine: Engine, tokenizer: Tokenizer, request: Request, stop: tuple[str, ...] = ()
) -> Iterator[Piece | Completion]:
  """Pieces of the answer to a request, and at last its completion. Leaving the iteration early cancels the request.

  `stop` must be the strings that `request.ends_at` watches for; the last piece may hold one, the completion does not.
  """
  ids = ThinkingTokens.of(tokenizer)
  id = engine.submit(request)
  reader = _Reader(tokenizer, ids, ids.phase(list(request.prompt)))
  try:
    seen, ended = 0, False
    while not ended:
      ended = id in engine.step()
      result = engine.result(id)
      for token, sampled in zip(result.tokens[seen:], result.sampled[seen:]):
        yield from reader.push(token, sampled)
      seen = len(result.tokens)
    yield from reader.finish()
    yield completion(tokenizer, ids, list(request.prompt), engine.take(id), stop)
  finally:
    engine.cancel(id)


class _Reader:
  """Line breaks around the tags belong to neither part."""

  def __init__(self, tokenizer: Tokenizer, ids: ThinkingTokens, phase: int):
    self._ids, self._phase = ids, phase
    self._decoder = tokenizer.stream(skip_special=True)
    self._held = ""  # line breaks that may be the part's last
    self._begun = False

  def push(self, token: int, sampled: bool) -> Iterator[Piece]:
    phase = self._ids.following(self._phase, token)
    if phase != self._phase:
      yield from self._turn(phase)
    elif sampled or phase != AFTER:
      yield from self._emit(self._decoder.push(token))

  def finish(self) -> Iterator[Piece]:
    yield from self._emit(self._decoder.finish())

  def _turn(self, phase: int) -> Iterator[Piece]:
    yield from self._emit(self._decoder.finish())
    self._phase, self._held, self._begun = phase, "", False

  def _emit(self, text: str) -> Iterator[Piece]:
    text = self._held + text
    if not self._begun:
      text = text.lstrip("\n")
    shown = text.rstrip("\n")
    self._held = text[len(shown) :]
    if shown:
      self._begun = True
      yield Piece("thinking" if self._phase == INSIDE else "response", shown)
