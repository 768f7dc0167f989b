"""Completion: an answer as text, thinking apart from response."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.rollout.request import FinishReason, Result
from qwen3_jax.rollout.thinking_budget import ThinkingTokens

ThinkingEnd = Literal["none", "closed", "budget", "unclosed"]


@dataclasses.dataclass(frozen=True)
class Completion:
  """One answer. The lists are equally long."""

  text: str  # all of it, control tokens left out, up to a stop string
  thinking: str  # between <think> and </think>; "" without thinking
  response: str  # what follows
  token_ids: list[int]  # the end token or those of a stop string included
  logprobs: list[float]  # of the model
  sampling_logprobs: list[float]  # of the distribution that was drawn from
  sampled: list[bool]  # False for tokens of the sentence that a thinking budget inserts
  finish_reason: FinishReason  # "stop": an end token; "length": max_new_tokens; "context": the model's context is full
  thinking_end: ThinkingEnd  # by </think>, by the budget, or not at all


def completion(
  tokenizer: Tokenizer, ids: ThinkingTokens, prompt: list[int], result: Result, stop: tuple[str, ...] = ()
) -> Completion:
  """The text of a result whose prompt was `prompt`."""
  assert result.finish_reason is not None
  tokens, sampled = result.tokens, result.sampled
  where = ids.thinking(ids.phase(prompt), tokens)
  ending: ThinkingEnd = "none"
  thinking, response = [], tokens
  if where is not None:
    closed = where.stop < len(tokens)
    ending = "unclosed" if not closed else "budget" if result.thinking_halted else "closed"
    thinking = tokens[where]
    # Of no part in the response: the inserted sentence's end, after </think>, and the model closing its thinking once
    # more after it.
    written = list(itertools.compress(tokens[where.stop + 1 :], sampled[where.stop + 1 :]))
    if result.thinking_halted and ids.end in written:
      written = written[len(written) - written[::-1].index(ids.end) :]
    response = [*tokens[: max(where.start - 1, 0)], *written]
  # A model may have more rows than its tokenizer has tokens: they stand for nothing.
  V = tokenizer.vocab_size
  decode = lambda tokens: _before(tokenizer.decode([t for t in tokens if t < V], skip_special=True), stop)
  text = decode(tokens)
  return Completion(
    text=text,
    thinking=decode(thinking).strip("\n"),
    response=(text if response is tokens else decode(response)).lstrip("\n"),
    token_ids=tokens,
    logprobs=result.log_probabilities,
    sampling_logprobs=result.sampling_log_probabilities,
    sampled=sampled,
    finish_reason=result.finish_reason,
    thinking_end=ending,
  )


def _before(text: str, stop: tuple[str, ...]) -> str:
  """The text up to the first stop string."""
  ends = [place for string in stop if (place := text.find(string)) >= 0]
  return text[: min(ends)] if ends else text


class StopStrings:
  """Watches the tokens of one request: `Request.ends_at`."""

  def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]):
    self._decoder = tokenizer.stream(skip_special=True)
    self._stop = stop
    self._longest = max(map(len, stop))
    self._tail = ""  # the last characters: a stop string may begin in one token and end in another

  def __call__(self, tokens: list[int]) -> int | None:
    for i, token in enumerate(tokens):
      text = self._tail + self._decoder.push(token)
      if any(string in text for string in self._stop):
        return i + 1
      self._tail = text[-(self._longest - 1) :] if self._longest > 1 else ""
    return None
