"""Answers to problems that have one right answer: share of right samples, and pass@k."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.answers import extract_answer, normalise, same_answer
from qwen3_jax.evaluation.evaluation import Evaluation
from qwen3_jax.evaluation.pass_at_k import mean_pass_at_k
from qwen3_jax.evaluation.records import Line, field, read_records
from qwen3_jax.evaluation.slots import settings_with_slots
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.completion import Completion
from qwen3_jax.rollout.generate import complete, context_length


@dataclasses.dataclass(frozen=True)
class Problem:
  messages: list[dict[str, Any]]
  answer: str

  @classmethod
  def of(cls, record: dict[str, Any]) -> Problem:
    """Raises ValueError for a record that is no problem."""
    if "messages" in record:
      messages = field(record, "messages", list)
    elif "prompt" in record:
      messages = [{"role": "user", "content": field(record, "prompt", str)}]
    else:
      raise ValueError(f"no field 'prompt' or 'messages'; it has {', '.join(record) or 'none'}")
    answer = str(field(record, "answer", (str, int, float)))
    if not normalise(answer):
      raise ValueError(f"answer: {answer!r} is empty, and nothing would be right")
    return cls(messages, answer)


@dataclasses.dataclass(frozen=True)
class ExactMatch:
  """Problems are lines of JSONL: {"prompt": text or "messages": [...], "answer": text or number}."""

  path: Path
  samples: int = 1  # answers to each problem
  ks: tuple[int, ...] = (1,)  # of pass@k
  limit: int = 0  # problems; 0: all
  enable_thinking: bool = True
  options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `complete`
  slots: int = 0  # of the engine; 0: sized to the problems
  generate: Callable[..., list[list[Completion]]] = complete  # or what takes the same arguments

  def __post_init__(self):
    if self.samples < 1:
      raise ValueError(f"samples={self.samples}, expected at least 1")
    if not self.ks or min(self.ks) < 1:
      raise ValueError(f"ks={self.ks}, expected whole numbers from 1 on")
    if max(self.ks) > self.samples:
      raise ValueError(f"pass@{max(self.ks)} needs as many samples a problem, found {self.samples}")

  def problems(self) -> list[tuple[Line, Problem]]:
    """Raises ValueError for malformed problems, OSError if the file cannot be read."""
    return read_records(self.path, Problem.of, self.limit)

  def run(self, model: Transformer, tokenizer: Tokenizer) -> Evaluation:
    """Shares of right and of finished samples, pass@k, mean tokens of a sample; rows of problems.

    Raises as `problems`, and ValueError for a problem that cannot be asked: before anything is generated.
    """
    problems = self.problems()
    prompts = [self._prompt(line, problem, model, tokenizer) for line, problem in problems]
    options = {"max_new_tokens": 2048, **self.options}
    settings = settings_with_slots(model.config, tokenizer, prompts, self.slots, options)
    completions = self.generate(model, tokenizer, prompts, num_samples=self.samples, settings=settings, **options)
    rows = []
    for (_, problem), answers in zip(problems, completions):
      found = [extract_answer(answer.response) for answer in answers]
      rows.append({
        "prompt": problem.messages[-1]["content"],
        "answer": problem.answer,
        "found": found,
        "responses": [answer.response for answer in answers],
        "right": sum(same_answer(answer, problem.answer) for answer in found),
        "tokens": statistics.fmean(len(answer.token_ids) for answer in answers),
        "finished": sum(answer.finish_reason in ("stop", "stop_string") for answer in answers),
      })  # fmt: skip
    share = lambda name: statistics.fmean(row[name] / self.samples for row in rows)
    right = [row["right"] for row in rows]
    metrics = {
      "exact_match": share("right"),
      **{f"pass@{k}": mean_pass_at_k(self.samples, right, k) for k in self.ks},
      "tokens": statistics.fmean(row["tokens"] for row in rows),
      "finished": share("finished"),
      "problems": float(len(rows)),
    }
    return Evaluation(metrics, rows)

  def _prompt(self, line: Line, problem: Problem, model: Transformer, tokenizer: Tokenizer) -> list[int]:
    try:
      encoded = encode_conversation(
        tokenizer, problem.messages, enable_thinking=self.enable_thinking, add_generation_prompt=True
      )
    except ValueError as error:
      raise ValueError(f"{line}: {error}") from None
    context = context_length(model.config)
    if len(encoded.ids) >= context:
      raise ValueError(f"{line}: a prompt of {len(encoded.ids)} tokens leaves no room in a context of {context}")
    return encoded.ids
