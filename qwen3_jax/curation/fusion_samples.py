"""Samples of thinking-mode fusion (Qwen3 report, section 4.3): questions with answers, and where they come from."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.curation.ask import ask_all
from qwen3_jax.curation.query_filters import Judge
from qwen3_jax.data.chat_template import check_messages
from qwen3_jax.data.conversation import thinking_mode
from qwen3_jax.data.tokenizer_backends import QWEN_ADDED_TOKENS
from qwen3_jax.evaluation.records import field, read_records
from qwen3_jax.language_models.language_model import ChatRequest, LanguageModel
from qwen3_jax.on_task import OnTask
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.records import content_id
from qwen3_jax.rewards.registry import verify_all
from qwen3_jax.rollout.request import derived_seed
from qwen3_jax.rollout.sampling import NOT_THINKING

# Of samples without thinking, as the report lists them; `multilingual` has the translations.
CATEGORIES = (
  "code", "mathematics", "instruction_following", "multilingual", "creative_writing", "question_answering", "role_play",
)  # fmt: skip
_CONTROL = re.compile("|".join(map(re.escape, QWEN_ADDED_TOKENS)))
_EXAMPLES = 5  # of each check
_LONGEST = 300  # characters of an example
_FIELDS = ("id", "messages", "prompt", "answer", "system")


@dataclasses.dataclass(frozen=True)
class Turn:
  """A question and its answer."""

  prompt: str
  response: str  # "" where it has to be written
  thinking: str = ""  # "" without thinking


@dataclasses.dataclass(frozen=True)
class Sample:
  """One or more turns that belong together; all answers think, or none does."""

  id: str
  category: str
  turns: tuple[Turn, ...]
  system: str = ""  # prompt, "" for none
  verified: bool = False  # by a verifier, so that no checklist is needed

  @property
  def thinks(self) -> bool:
    return bool(self.turns[-1].thinking)


class Removed:
  """What checks removed: counts by category, and examples."""

  def __init__(self):
    self._counts: dict[str, collections.Counter[str]] = {}
    self._examples: dict[str, list[dict[str, str]]] = {}

  def add(self, check: str, sample: Sample, reason: str) -> None:
    self._counts.setdefault(check, collections.Counter())[sample.category] += 1
    examples = self._examples.setdefault(check, [])
    if len(examples) < _EXAMPLES:
      turn = sample.turns[-1]
      text = shortened(f"{turn.prompt} -> {turn.response}")
      examples.append({"id": sample.id, "category": sample.category, "reason": shortened(reason), "text": text})

  def as_dict(self) -> dict[str, Any]:
    return {
      check: {"count": counts.total(), "by_category": dict(sorted(counts.items())), "examples": self._examples[check]}
      for check, counts in self._counts.items()
    }


def shortened(text: str) -> str:
  """A text as a report shows it."""
  text = " ".join(text.split())
  return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 100]} ... {text[-95:]}"


def fit(samples: Iterable[Sample], removed: Removed) -> list[Sample]:
  """Those that can be given a flag and encoded, without exact duplicates."""
  kept: dict[tuple[Any, ...], Sample] = {}
  for sample in samples:
    content = (sample.system, sample.turns)
    if reason := unfit(sample):
      removed.add("unfit", sample, reason)
    elif content in kept:
      removed.add("duplicate", sample, f"the same as {kept[content].id!r}")
    else:
      kept[content] = sample
  return list(kept.values())


def unfit(sample: Sample) -> str:
  """Why a sample cannot be part of a dialog, "" if it can."""
  if any(not turn.prompt.strip() for turn in sample.turns):
    return "an empty prompt"
  if any(not turn.response.strip() for turn in sample.turns):
    return "an empty answer"
  asked = [{"role": "user", "content": text} for text in (sample.system, *(turn.prompt for turn in sample.turns))]
  if thinking_mode(asked, default=True) == thinking_mode(asked, default=False):
    return "the prompt holds a flag itself"
  for text in (sample.system, *(text for turn in sample.turns for text in dataclasses.astuple(turn))):
    if match := _CONTROL.search(text):
      return f"the control token or tag {match[0]} in the text"
    if "\ufffd" in text:
      return "bytes that are no text"
  return ""


def read_samples(category: str, path: Path) -> list[Sample]:
  """Samples without thinking of a JSONL file.

  A line is {"messages": [...]}, from an optional system turn over turns of user and assistant to an answer, or
  {"prompt", "answer"}; without `answer` it has to be written. `id` and, beside `prompt`, `system` are optional.

  Raises ValueError naming the line for what is malformed, OSError if the file cannot be read.
  """
  if category not in CATEGORIES:
    raise ValueError(f"category={category!r}: no such category.{nearest.or_all(category, CATEGORIES)}")
  return [sample for _, sample in read_records(path, lambda record: _of_record(record, category))]


def _of_record(record: dict[str, Any], category: str) -> Sample:
  for name in record:
    if name not in _FIELDS:
      raise ValueError(f"{name}: a sample has no such field.{nearest.or_all(name, _FIELDS)}")
  if "messages" in record:
    if rest := sorted(record.keys() & {"prompt", "answer", "system"}):
      raise ValueError(f"{rest[0]}: expected either this or messages, found both")
    system, turns = _of_messages(check_messages(field(record, "messages", list)))
  else:
    system = field(record, "system", str).strip() if "system" in record else ""
    answer = field(record, "answer", str) if "answer" in record else ""
    if "answer" in record and not answer.strip():
      raise ValueError("answer: empty; leave the field out where a model is to write it")
    turns = (Turn(field(record, "prompt", str).strip(), answer.strip()),)
  made = content_id(category, system, *(text for turn in turns for text in (turn.prompt, turn.response)))
  return Sample(field(record, "id", str) if "id" in record else made, category, turns, system)


def _of_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Turn, ...]]:
  """(system prompt, turns)."""
  system = ""
  if messages[0]["role"] == "system":
    system, messages = (messages[0].get("content") or "").strip(), messages[1:]
  roles = [message["role"] for message in messages]
  if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
    raise ValueError(f"messages: expected user and assistant in turns, ending with an answer, found {', '.join(roles)}")
  for message in messages:
    if message.get("reasoning_content") or message.get("tool_calls"):
      what = "reasoning_content" if message.get("reasoning_content") else "tool_calls"
      raise ValueError(f"messages: {what} in an answer; expected samples without thinking and tools")
  texts = [(message.get("content") or "").strip() for message in messages]
  return system, tuple(Turn(prompt, answer) for prompt, answer in zip(texts[::2], texts[1::2]))


def direct_answers(
  problems: Sequence[Problem], removed: Removed | None = None, judge: Judge = verify_all
) -> list[Sample]:
  """The references of problems as answers without thinking: no model is needed.

  Problems without a reference, or with one that their verifier does not accept, are left out.
  """
  verdicts = judge(problems, [problem.reference for problem in problems])
  removed = removed or Removed()
  kept = []
  for problem, verdict in zip(problems, verdicts, strict=True):
    category = problem.domain if problem.domain in CATEGORIES else "question_answering"
    turns = (Turn(problem.prompt, problem.reference.strip()),)
    sample = Sample(f"direct/{problem.id}", category, turns, verified=True)
    if not problem.reference.strip():
      removed.add("no reference", sample, "the problem has no reference")
    elif not verdict.right:
      removed.add("reference", sample, f"its verifier does not accept the reference: {verdict.reason}")
    else:
      kept.append(sample)
  return kept


def write_answers(
  samples: Sequence[Sample],
  model: LanguageModel,
  seed: int,
  removed: Removed,
  *,
  max_tokens: int = 2048,
  on_progress: OnTask = lambda step, done, total: None,
  tolerated: float = 0.0,
) -> list[Sample]:
  """The samples, with answers of the model, without thinking, where there were none.

  Sampled as the report does without thinking (section 4.6); answers that failed or were cut short are left out. Raises
  CurationError where a share of more than `tolerated` failed.
  """
  open_ones = [i for i, sample in enumerate(samples) if not sample.turns[-1].response]
  requests = []
  for i in open_ones:
    sample = samples[i]
    system = [{"role": "system", "content": sample.system}] if sample.system else []
    requests.append(
      ChatRequest(
        [*system, {"role": "user", "content": sample.turns[-1].prompt}],
        max_tokens=max_tokens,
        temperature=NOT_THINKING.temperature,
        top_p=NOT_THINKING.top_p,
        top_k=NOT_THINKING.top_k,
        presence_penalty=NOT_THINKING.presence_penalty,
        enable_thinking=False,
        seed=derived_seed(seed, "answers", sample.id) % 2**31,
      )
    )
  written: list[Sample | None] = list(samples)
  replies = ask_all(model, requests, "answers", on_progress, tolerated) if requests else []
  for i, (reply,) in zip(open_ones, replies, strict=True):
    turn = dataclasses.replace(samples[i].turns[-1], response=reply.response.strip())
    written[i] = dataclasses.replace(samples[i], turns=(turn,))
    if reply.finish_reason != "stop":
      reason = reply.error if reply.finish_reason == "error" else f"the answer was cut short at {max_tokens} tokens"
      removed.add("not written", samples[i], reason)
      written[i] = None
  return [sample for sample in written if sample is not None]
