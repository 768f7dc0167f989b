"""Trace: one response of the reasoning model to a query."""

from __future__ import annotations

import dataclasses
from typing import Any

from qwen3_jax.language_models.language_model import Reply
from qwen3_jax.problems.problem import Problem


@dataclasses.dataclass(frozen=True)
class Trace:
  problem: Problem
  sample: int  # of the query's responses, from 0
  thinking: str
  response: str
  finished: bool = True  # False: cut short by its limit of tokens

  @classmethod
  def of(cls, problem: Problem, sample: int, reply: Reply) -> Trace:
    return cls(problem, sample, reply.thinking, reply.response, reply.finish_reason == "stop")

  def conversation(self) -> dict[str, Any]:
    """A line of data for supervised fine-tuning."""
    assistant = {"role": "assistant", "content": self.response, "reasoning_content": self.thinking}
    return {
      "id": self.problem.id,
      "domain": self.problem.domain,
      "messages": [{"role": "user", "content": self.problem.prompt}, assistant],
    }
