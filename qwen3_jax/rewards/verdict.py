"""Verdict: what a verifier says of an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qwen3_jax.problems.problem import Problem


@dataclasses.dataclass(frozen=True)
class Verdict:
  score: float  # 0 wrong .. 1 right
  reason: str = ""  # why it is not 1

  @property
  def right(self) -> bool:
    return self.score >= 1.0


# verifier(problem, response) -> Verdict; `response` is what follows the thinking. Raises nothing: whatever is malformed
# scores 0 with a reason.
Verifier = Callable[[Problem, str], Verdict]
