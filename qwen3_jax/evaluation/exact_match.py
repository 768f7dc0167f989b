"""Answers to problems that have one right answer: share of right samples, and pass@k."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.answers import extract_answer, same_answer
from qwen3_jax.evaluation.evaluation import Evaluation
from qwen3_jax.evaluation.pass_at_k import pass_at_k
from qwen3_jax.evaluation.records import read_records
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.generate import generate


@dataclasses.dataclass(frozen=True)
class ExactMatch:
  """Problems are lines of JSONL: {"prompt": text or "messages": [...], "answer": text}."""

  path: Path
  samples: int = 1  # answers to each problem
  ks: tuple[int, ...] = (1,)  # of pass@k
  limit: int = 0  # problems; 0: all
  options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `generate`

  def run(self, model: Transformer, tokenizer: Tokenizer) -> Evaluation:
    """Raises ValueError for malformed problems and for a k that is more than the samples."""
    if max(self.ks) > self.samples:
      raise ValueError(f"pass@{max(self.ks)} needs as many samples a problem, found {self.samples}")
    problems = read_records(self.path, ("prompt|messages", "answer"), self.limit)
    conversations = [p.get("messages") or [{"role": "user", "content": p["prompt"]}] for p in problems]
    completions = generate(model, tokenizer, conversations, num_samples=self.samples, **self.options)
    rows = []
    for problem, answers in zip(problems, completions):
      found = [extract_answer(answer.response) for answer in answers]
      rows.append({
        "prompt": problem.get("prompt") or problem["messages"][-1]["content"],
        "answer": str(problem["answer"]),
        "found": found,
        "right": sum(same_answer(answer, str(problem["answer"])) for answer in found),
        "tokens": statistics.mean(len(answer.token_ids) for answer in answers),
        "finished": sum(answer.finish_reason == "stop" for answer in answers),
      })  # fmt: skip
    mean = lambda values: statistics.mean(list(values))
    metrics = {
      "exact_match": mean(row["right"] / self.samples for row in rows),
      **{f"pass@{k}": mean(pass_at_k(self.samples, row["right"], k) for row in rows) for k in self.ks},
      "tokens": mean(row["tokens"] for row in rows),
      "finished": mean(row["finished"] / self.samples for row in rows),
      "problems": float(len(rows)),
    }
    return Evaluation(metrics, rows)
