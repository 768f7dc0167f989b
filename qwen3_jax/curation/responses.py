"""N responses of the reasoning model to each query, and Pass@N (Qwen3 report, section 4.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qwen3_jax.curation.ask import ask_all
from qwen3_jax.curation.criteria.wrong import wrong
from qwen3_jax.curation.query_filters import Judge
from qwen3_jax.curation.trace import Trace
from qwen3_jax.language_models.language_model import ChatRequest, LanguageModel
from qwen3_jax.on_task import OnTask
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rollout.request import derived_seed


@dataclasses.dataclass(frozen=True)
class Answered:
  """A query's responses, and of each what is wrong with its answer, "" if nothing."""

  problem: Problem
  traces: list[Trace]
  wrong: list[str]

  @property
  def passes(self) -> bool:
    """Pass@N: whether any response is right."""
    return not all(self.wrong)


def respond(
  problems: Sequence[Problem],
  model: LanguageModel,
  judge: Judge,
  samples: int,
  max_tokens: int,
  seed: int,
  on_progress: OnTask,
  tolerated: float,
) -> list[Answered]:
  """Each query with its `samples` responses, judged."""
  requests = [
    ChatRequest(
      [{"role": "user", "content": problem.prompt}],
      num_samples=samples,
      max_tokens=max_tokens,
      seed=derived_seed(seed, "responses", problem.id) % 2**31,
    )
    for problem in problems
  ]
  replies = ask_all(model, requests, "responses", on_progress, tolerated)
  traces = [[Trace.of(problem, i, reply) for i, reply in enumerate(mine)] for problem, mine in zip(problems, replies)]
  flat = [trace for mine in traces for trace in mine]
  verdicts = iter(judge([trace.problem for trace in flat], [trace.response for trace in flat]))
  return [
    Answered(problem, mine, [wrong(trace, next(verdicts)) for trace in mine]) for problem, mine in zip(problems, traces)
  ]
