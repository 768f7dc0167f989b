"""Which answers of a teacher a student learns from."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qwen3_jax.curation.query_filters import Judge
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.tokenizer_backends import QWEN_SPECIAL_TOKENS
from qwen3_jax.problems.problem import Problem

# What becomes of an answer, in the order in which it is found out.
Outcome = Literal[
  "failed",  # the model gave none, or the prompt does not fit
  "truncated",
  "broken_format",  # see `parse`
  "wrong",
  "duplicate",  # of a conversation that is kept
  "kept_wrong",  # where wrong ones are asked for
  "kept",
]
Counts = dict[str, dict[str, dict[str, int]]]  # by mode, domain and outcome

_CONTROL = re.compile("|".join(map(re.escape, QWEN_SPECIAL_TOKENS)))
_FORM = re.compile(r"\s*<think>(.*)</think>(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Answered:
  """An answer as it was written."""

  problem: Problem
  messages: Sequence[Mapping[str, Any]]  # that it answers
  mode: str  # one of rl.modes.MODES
  thinks: bool  # whether it should
  text: str  # all of it, tags included, without the token that ends it
  ending: str = "stop"  # as `FinishReason`
  tools: Sequence[Mapping[str, Any]] | None = None
  tokens: int = 0  # that the model wrote


def parse(text: str, thinks: bool) -> tuple[str, str] | None:
  """(thinking, response) of an answer; None unless it is one closed think block, empty if not `thinks`, and a response.

  A thinking answer with an empty block is broken, too: it has not obeyed. So is one that holds control tokens or bytes
  that are no text.
  """
  match = _FORM.fullmatch(text)
  if match is None or text.count("<think>") != 1 or text.count("</think>") != 1:
    return None
  if _CONTROL.search(text) or "\ufffd" in text:
    return None
  thinking, response = match[1].strip("\n"), match[2].lstrip("\n")
  if bool(thinking.strip()) != thinks or not response.strip():
    return None
  return thinking if thinks else "", response


def answer_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
  """What `parse` reads of an answer's tokens; the one that ends it is not among them."""
  # A model may have more rows than its tokenizer has tokens: they stand for nothing, as bytes do that are no text.
  return tokenizer.decode(tokens) if max(tokens, default=0) < tokenizer.vocab_size else "\ufffd"


class Filters:
  """Applies all filters; remembers what it kept, and counts."""

  def __init__(self, judge: Judge, keep_wrong: bool):
    self._judge, self._keep_wrong = judge, keep_wrong
    self._kept: set[bytes] = set()

  def remember(self, conversation: Mapping[str, Any]) -> None:
    """One that was kept before."""
    self._kept.add(_digest(conversation["messages"]))

  def __call__(self, answers: Sequence[Answered]) -> tuple[list[dict[str, Any]], Counts]:
    """The conversations that are kept, as `chat:` sources read them, and what became of all."""
    outcomes: list[Outcome | None] = []
    parsed: dict[int, tuple[str, str]] = {}
    for i, answer in enumerate(answers):
      found = parse(answer.text, answer.thinks) if answer.ending == "stop" else None
      if found is not None:
        parsed[i] = found
      cut = answer.ending in ("length", "context")
      outcomes.append(
        None if found else "broken_format" if answer.ending == "stop" else "truncated" if cut else "failed"
      )
    verdicts = self._judge([answers[i].problem for i in parsed], [response for _, response in parsed.values()])
    kept = []
    for (i, (thinking, response)), verdict in zip(parsed.items(), verdicts, strict=True):
      if not verdict.right and not self._keep_wrong:
        outcomes[i] = "wrong"
        continue
      conversation = _conversation(answers[i], thinking, response, verdict.score)
      if _digest(conversation["messages"]) in self._kept:
        outcomes[i] = "duplicate"
        continue
      outcomes[i] = "kept" if verdict.right else "kept_wrong"
      self.remember(conversation)
      kept.append(conversation)
    counts: Counts = {}
    for answer, outcome in zip(answers, outcomes):
      assert outcome is not None
      add(counts, {answer.mode: {answer.problem.domain: {outcome: 1}}})
    return kept, counts


def add(counts: Counts, more: Counts) -> None:
  """Adds `more` to `counts`."""
  for mode, domains in more.items():
    for domain, outcomes in domains.items():
      into = counts.setdefault(mode, {}).setdefault(domain, {})
      for outcome, number in outcomes.items():
        into[outcome] = into.get(outcome, 0) + number


def totals(counts: Counts) -> dict[str, int]:
  """By outcome."""
  found: collections.Counter[str] = collections.Counter()
  for domains in counts.values():
    for outcomes in domains.values():
      found.update(outcomes)
  return dict(sorted(found.items()))


def _conversation(answer: Answered, thinking: str, response: str, score: float) -> dict[str, Any]:
  message = {"role": "assistant", "reasoning_content": thinking, "content": response}
  earlier = any(turn["role"] == "assistant" for turn in answer.messages)
  return {
    "id": answer.problem.id,
    "domain": answer.problem.domain,
    "mode": answer.mode,
    "score": score,
    "messages": [*answer.messages, message],
    **({"tools": list(answer.tools)} if answer.tools else {}),
    **({"loss": "last"} if earlier else {}),  # nobody judged the answers before
  }


def _digest(messages: Sequence[Mapping[str, Any]]) -> bytes:
  return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()[:16]
