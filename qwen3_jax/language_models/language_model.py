"""LanguageModel: one protocol for a model behind an endpoint and for one in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

Message = Mapping[str, Any]  # {"role": ..., "content": ...}


@dataclasses.dataclass(frozen=True)
class ChatRequest:
  """A conversation to be answered `num_samples` times."""

  messages: Sequence[Message]
  num_samples: int = 1
  max_tokens: int = 2048
  temperature: float = 0.6
  top_p: float = 0.95
  top_k: int = 20  # 0: all
  presence_penalty: float = 0.0
  enable_thinking: bool = True
  stop: tuple[str, ...] = ()
  seed: int | None = None  # None: another answer each time, and no cache


@dataclasses.dataclass(frozen=True)
class Reply:
  response: str  # what follows the thinking
  thinking: str  # "" without
  finish_reason: Literal["stop", "length", "error"]
  prompt_tokens: int
  completion_tokens: int
  error: str = ""  # of a request that failed for good


class LanguageModel(Protocol):
  name: str

  def answer(
    self, requests: Sequence[ChatRequest], on_progress: Callable[[int, int], None] = lambda done, total: None
  ) -> list[list[Reply]]:
    """Replies in the order of requests, `num_samples` each; many requests run at once.

    A request that fails for good has replies whose finish_reason is "error"; the others are not affected.
    """
    ...


def collected(
  answer_each: Callable[[Sequence[ChatRequest], Callable[[int, list[Reply]], None]], None],
  requests: Sequence[ChatRequest],
  on_progress: Callable[[int, int], None],
) -> list[list[Reply]]:
  """`LanguageModel.answer` of a model that hands over each request's replies as they come; counts requests."""
  answers: list[list[Reply]] = [[] for _ in requests]
  done = 0

  def keep(number: int, replies: list[Reply]) -> None:
    nonlocal done
    answers[number] = replies
    done += 1
    on_progress(done, len(requests))

  answer_each(requests, keep)
  return answers
