"""Accuracy and form of answers with thinking, with the soft switch that turns it off, and without (report, 4.3)."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Sequence

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.confidence import Estimate, IntervalEvaluation, clustered
from qwen3_jax.evaluation.form import disobedience, format_fault
from qwen3_jax.evaluation.pass_at_k import pass_at_k
from qwen3_jax.evaluation.questions import ASKING, Ask, Asking, Question
from qwen3_jax.evaluation.verified import ask_all, check_problems, right_answers
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.modes import in_mode
from qwen3_jax.rollout.request import derived_seed

# Name -> (flag in the user's turn as `rl.modes` has it, enable_thinking of the template).
MODES = {"think": ("think", True), "no_think": ("no_think", True), "thinking off": ("plain", False)}


@dataclasses.dataclass(frozen=True)
class ThinkingModes:
  """Asks every problem in every mode, with the same seeds.

  Metrics of each mode: pass@k, and the shares of answers that obey (`form.disobedience`) and are well formed
  (`form.format_fault`), with intervals over problems; mean thinking tokens, share of truncated answers; and how many
  answers have which fault.

  Raises ValueError for options that cannot be, and for a problem that cannot be verified.
  """

  problems: Sequence[Problem]
  samples: int = 1  # answers to each problem in each mode
  ks: tuple[int, ...] = (1,)  # of pass@k
  seed: int = 0
  thinking_budget: int | None = None  # tokens, in the mode that thinks
  asking: Asking = ASKING

  def __post_init__(self):
    if self.samples < 1 or not self.ks or not 1 <= min(self.ks) <= max(self.ks) <= self.samples:
      raise ValueError(f"samples={self.samples}, ks={self.ks}: expected numbers from 1 on, no k above the samples")
    check_problems(self.problems)

  def run(self, model: Transformer, tokenizer: Tokenizer) -> IntervalEvaluation:
    """Raises ValueError for a problem that leaves no room for an answer."""
    return self.run_with(self.asking.of_model(model, tokenizer))

  def run_with(self, ask: Ask) -> IntervalEvaluation:
    """The same of whatever answers, e.g. `Asking.of_engine`."""
    metrics: dict[str, float | Estimate] = {}
    rows = []
    questions = [self._question(problem, mode) for mode in MODES for problem in self.problems]
    answered = iter(ask_all(ask, [*self.problems] * len(MODES), questions))
    faults: dict[str, float | Estimate] = {}
    for mode in MODES:
      thinks = mode == "think"
      groups = [next(answered) for _ in self.problems]
      right = right_answers(self.problems, groups)
      every = [answer for group in groups for answer in group]
      form = [[format_fault(answer.text, thinks) for answer in group] for group in groups]
      obeys = [[not disobedience(answer.text, thinks) for answer in group] for group in groups]
      for k in self.ks:
        # A problem's pass@k is worth as many independent groups of k answers as it has.
        shares = [[pass_at_k(self.samples, sum(group), k)] * (self.samples // k) for group in right]
        metrics[f"{mode}/pass@{k}"] = clustered(shares)
      metrics |= {
        f"{mode}/obeys": clustered(obeys),
        f"{mode}/well_formed": clustered([[not fault for fault in group] for group in form]),
        f"{mode}/thinking_tokens": statistics.fmean(answer.thinking_tokens for answer in every),
        f"{mode}/truncated": statistics.fmean(answer.truncated for answer in every),
      }
      counts = collections.Counter(fault for group in form for fault in group if fault)
      faults |= {f"{mode}: {fault}/answers": count for fault, count in counts.most_common()}
      for problem, group, truth, found in zip(self.problems, groups, right, form):
        rows.append({
          "problem": problem.id,
          "mode": mode,
          "right": sum(truth),
          "faults": found,
          "thinking_tokens": [answer.thinking_tokens for answer in group],
          "responses": [answer.completion.response for answer in group],
        })  # fmt: skip
    counted = {"problems": len(self.problems), "samples": self.samples}
    return IntervalEvaluation.of(counted | metrics | faults, rows)

  def _question(self, problem: Problem, mode: str) -> Question:
    flag, enable_thinking = MODES[mode]
    thinks = mode == "think"
    return Question(
      [{"role": "user", "content": in_mode(problem, flag).prompt}],
      [derived_seed(self.seed, problem.id, number) for number in range(self.samples)],
      thinks=thinks,
      enable_thinking=enable_thinking,
      thinking_budget=self.thinking_budget if thinks else None,
    )
