"""The chance that one of k answers is right, from n answers (Chen et al. 2021, section 2.1)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def pass_at_k(answers: int, right: int, k: int) -> float:
  """1 - C(answers - right, k) / C(answers, k): unbiased, where 1 - (1 - right / answers)^k is not.

  Raises ValueError unless 1 <= k <= answers and 0 <= right <= answers.
  """
  if not 1 <= k <= answers or not 0 <= right <= answers:
    raise ValueError(f"pass_at_k: {right} of {answers} answers right and k={k}, expected k and right within them")
  return 1.0 - math.prod(1.0 - k / i for i in range(answers - right + 1, answers + 1))


def mean_pass_at_k(answers: int, right: Sequence[int], k: int) -> float:
  """Over problems, each with `answers` answers of which `right[i]` are right."""
  return statistics.fmean(pass_at_k(answers, count, k) for count in right)
