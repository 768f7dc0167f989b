"""Accuracy against thinking budgets (Qwen3 report, section 4.3 and Figure 2)."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.confidence import (
  LEVEL,
  Estimate,
  IntervalEvaluation,
  chance_of_drop,
  clustered,
  holm,
)
from qwen3_jax.evaluation.questions import ASKING, Answered, Ask, Asking, Question
from qwen3_jax.evaluation.result_tables import budget_group
from qwen3_jax.evaluation.verified import ask_all, check_problems, right_answers
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rollout.request import derived_seed


@dataclasses.dataclass(frozen=True)
class BudgetCurve:
  """The same problems with the same seeds under every budget, and without one.

  At its budget thinking is halted with the report's sentence, and the model answers (`Request.thinking_budget`). The
  tokens up to there are those of unlimited thinking: seeds decide by the token's number.

  Metrics of each budget: accuracy with an interval over problems, mean thinking tokens that the model wrote, shares of
  answers that were halted and truncated. Of the curve:

    monotone: 1 unless some budget's accuracy is below that of a smaller one by more than chance. Each pair of budgets
      is tested on the differences of right answers by problem (`confidence.chance_of_drop`), all pairs together at 5%
      (`confidence.holm`).
    drop_p: the least of these adjusted p-values.
    gain, gain_p: accuracy with unlimited thinking minus that of the least budget, and how likely chance alone gives as
      much by the same test, one-sided.

  Raises ValueError for options that cannot be, and for a problem that cannot be verified.
  """

  problems: Sequence[Problem]
  samples: int = 1  # answers to each problem under each budget
  budgets: tuple[int, ...] = ()  # in tokens; (): 0 and powers of two up to the longest unlimited thinking
  seed: int = 0
  asking: Asking = ASKING

  def __post_init__(self):
    if self.samples < 1:
      raise ValueError(f"samples={self.samples}, expected at least 1")
    if any(budget < 0 for budget in self.budgets):
      raise ValueError(f"budgets={self.budgets}, expected tokens from 0 on")
    check_problems(self.problems)

  def run(self, model: Transformer, tokenizer: Tokenizer) -> IntervalEvaluation:
    """Raises ValueError for a problem that leaves no room for an answer."""
    return self.run_with(self.asking.of_model(model, tokenizer))

  def run_with(self, ask: Ask) -> IntervalEvaluation:
    """The same of whatever answers, e.g. `Asking.of_engine`."""
    unlimited = self._ask(ask, [None])
    longest = max(answer.thinking_tokens for group in unlimited for answer in group)
    budgets = sorted({*(self.budgets or _powers(longest))})
    limited = self._ask(ask, budgets)
    P = len(self.problems)
    groups = {budget_group(budget): limited[i * P : (i + 1) * P] for i, budget in enumerate(budgets)}
    groups[budget_group(None)] = unlimited
    right = {name: right_answers(self.problems, answers) for name, answers in groups.items()}
    metrics: dict[str, float | Estimate] = {"problems": P, "samples": self.samples}
    metrics |= _of_curve([[sum(group) for group in found] for found in right.values()], self.samples)
    for name, answers in groups.items():
      every = [answer for group in answers for answer in group]
      metrics |= {
        f"{name}/accuracy": clustered(right[name]),
        f"{name}/thinking_tokens": statistics.fmean(answer.thinking_tokens for answer in every),
        f"{name}/halted": statistics.fmean(answer.completion.thinking_end == "budget" for answer in every),
        f"{name}/truncated": statistics.fmean(answer.truncated for answer in every),
      }
    rows = [
      {
        "problem": problem.id,
        "right": {name: sum(found[i]) for name, found in right.items()},
        "thinking_tokens": {name: [a.thinking_tokens for a in answers[i]] for name, answers in groups.items()},
      }
      for i, problem in enumerate(self.problems)
    ]
    return IntervalEvaluation.of(metrics, rows)

  def _ask(self, ask: Ask, budgets: Sequence[int | None]) -> list[list[Answered]]:
    """Answers to all problems under the first budget, then under the next."""
    questions = [
      Question(
        [{"role": "user", "content": problem.prompt}],
        [derived_seed(self.seed, problem.id, number) for number in range(self.samples)],
        thinking_budget=budget,
      )
      for budget in budgets
      for problem in self.problems
    ]
    return ask_all(ask, [*self.problems] * len(budgets), questions)


def _powers(longest: int) -> list[int]:
  return [0, *(2**i for i in range(longest.bit_length()))]


def _of_curve(right: Sequence[Sequence[int]], samples: int) -> dict[str, float]:
  """Right answers by budget, from the least on, and problem."""
  differences = lambda low, high: [b - a for a, b in zip(right[low], right[high])]
  pairs = itertools.combinations(range(len(right)), 2)
  drop = min(holm([chance_of_drop(differences(low, high)) for low, high in pairs]))
  gained = differences(0, -1)
  return {
    "monotone": float(drop > 1 - LEVEL),
    "drop_p": drop,
    "gain": sum(gained) / len(gained) / samples,
    "gain_p": chance_of_drop([-difference for difference in gained]),
  }
