"""Questions to a language model whose reply is one of a few words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from qwen3_jax.language_models.language_model import ChatRequest, LanguageModel, Reply
from qwen3_jax.on_task import OnTask
from qwen3_jax.rollout.request import derived_seed

Answered = Callable[[Sequence[ChatRequest]], list[list[Reply]]]


class CurationError(RuntimeError):
  """Curation cannot go on; the message says why."""


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a model replied: one of the words, or "" and why not."""

  word: str
  problem: str = ""


def ask_all(
  model: LanguageModel,
  requests: Sequence[ChatRequest],
  step: str,
  on_progress: OnTask,
  tolerated: float,
) -> list[list[Reply]]:
  """The replies, of which a share of at most `tolerated` may have failed.

  Raises CurationError where more have: a model that is away must not look like one that knows nothing.
  """
  answers = model.answer(requests, lambda done, total: on_progress(step, done, total))
  failed = [reply for replies in answers for reply in replies if reply.finish_reason == "error"]
  total = sum(len(replies) for replies in answers)
  if len(failed) > tolerated * total:
    raise CurationError(
      f"{step}: {len(failed)} of {total} replies of {model.name} failed, more than {tolerated:.1%}, e.g."
      f" {failed[0].error}"
    )
  return answers


def choose(
  model: LanguageModel,
  questions: Sequence[tuple[str, str]],
  words: Sequence[str],
  step: str,
  seed: int,
  *,
  attempts: int = 3,
  on_progress: OnTask = lambda step, done, total: None,
  tolerated: float = 0.0,
) -> list[Choice]:
  """For each (id, question) one of `words`; a reply without one is asked for again, with another seed.

  The model does not think, and is asked to end with a line "VERDICT: WORD", which alone is read.
  """
  told = f"\n\nEnd with one line of this form and nothing after it:\nVERDICT: <one of {' | '.join(words)}>"
  found: dict[int, Choice] = {}
  for attempt in range(attempts):
    open_ones = [i for i in range(len(questions)) if i not in found]
    requests = [
      ChatRequest(
        [{"role": "user", "content": questions[i][1] + told}],
        max_tokens=512,
        temperature=0.0 if attempt == 0 else 0.7,
        enable_thinking=False,
        seed=derived_seed(seed, step, questions[i][0], attempt) % 2**31,
      )
      for i in open_ones
    ]
    if not requests:
      break
    for i, replies in zip(open_ones, ask_all(model, requests, step, on_progress, tolerated)):
      if replies[0].finish_reason == "error":
        found[i] = Choice("", f"the model failed: {replies[0].error}")
      elif word := verdict(replies[0].response, words):
        found[i] = Choice(word)
  return [found.get(i, Choice("", f"no verdict in {attempts} replies")) for i in range(len(questions))]


def verdict(reply: str, words: Sequence[str]) -> str:
  """The word of the last line's verdict, "" if it is none of the words."""
  lines = [line.strip() for line in reply.strip().splitlines() if line.strip()]
  match = (
    re.fullmatch(r"[*_#\s]*VERDICT[*_]*\s*:\s*[*_<\"'`]*([^*_<>\"'`]+?|[\w-]+)[*_>\"'`.\s]*", lines[-1], re.IGNORECASE)
    if lines
    else None
  )
  said = match[1].strip().lower().replace(" ", "_") if match else ""
  return next((word for word in words if word.lower() == said), "")
