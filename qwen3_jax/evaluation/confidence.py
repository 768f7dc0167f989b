"""How sure a share is: intervals where answers come in groups, and tests of what was measured on the same problems."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwen3_jax.evaluation.evaluation import Evaluation

LEVEL = 0.95
_Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


class Interval(NamedTuple):
  low: float
  high: float


class Estimate(NamedTuple):
  value: float
  interval: Interval


@dataclasses.dataclass(frozen=True)
class IntervalEvaluation(Evaluation):
  """An evaluation that says how sure it is. A metric GROUP/NAME is shown in a table with a row for each group."""

  intervals: dict[str, Interval]  # of `LEVEL`, of some of the metrics

  @classmethod
  def of(cls, metrics: dict[str, float | Estimate], rows: list[dict]) -> IntervalEvaluation:
    estimates = {name: value for name, value in metrics.items() if isinstance(value, Estimate)}
    values = {name: value.value if isinstance(value, Estimate) else float(value) for name, value in metrics.items()}
    return cls(values, rows, {name: estimate.interval for name, estimate in estimates.items()})


def wilson(share: float, size: float) -> Interval:
  """The score interval of a share of `size` independent answers (Wilson 1927)."""
  center = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
  half = _Z / (1 + _Z**2 / size) * math.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
  return Interval(max(0.0, center - half), min(1.0, center + half))


def clustered(groups: Sequence[Sequence[float]]) -> Estimate:
  """The mean of values within [0, 1] that come in groups (answers to a problem, turns of a dialog), with its interval.

  Wilson's, with the number of independent answers that would give as much variance as the groups do: the count of
  values over the design effect (Kish 1965), which is at least 1. So it is Wilson's own where each group has one value,
  and unlike a bootstrap's it is not empty where all values are equal; then each group counts once. One group says
  nothing of others: it counts as one answer.

  Raises ValueError without values.
  """
  groups = [group for group in groups if len(group)]
  if not groups:
    raise ValueError("clustered: no values")
  sizes, sums = np.array([len(group) for group in groups], float), np.array([math.fsum(group) for group in groups])
  C, N = len(groups), float(sizes.sum())
  mean = math.fsum(sums) / N
  alone = mean * (1 - mean) / max(N - 1, 1)  # variance of the mean, were all values independent
  if C == 1 or alone <= 0:
    return Estimate(mean, wilson(mean, C))
  found = C / (C - 1) * float(np.sum((sums - sizes * mean) ** 2)) / N**2
  return Estimate(mean, wilson(mean, max(1.0, N / max(1.0, found / alone))))


def difference(a: Estimate, b: Estimate) -> Estimate:
  """a less b, two shares with score intervals, with its own (Newcombe 1998, method 10).

  It is for independent answers: wider than it need be where both are of the same problems.
  """
  low = math.hypot(a.value - a.interval.low, b.interval.high - b.value)
  high = math.hypot(a.interval.high - a.value, b.value - b.interval.low)
  value = a.value - b.value
  return Estimate(value, Interval(value - low, value + high))


def chance_of_drop(differences: Sequence[int]) -> float:
  """How likely a sum so small is, were each difference as likely to have the other sign: a one-sided p-value.

  The exact permutation test of pairs (Fisher 1935); for differences of -1, 0 and 1 it is McNemar's. Small: the sum is
  below 0 by more than chance.
  """
  sizes = [abs(int(difference)) for difference in differences if difference]
  chances = np.ones(1)  # of the sums -total, ..., total
  for size in sizes:
    wider = np.zeros(chances.size + 2 * size)
    wider[: chances.size] += chances / 2
    wider[2 * size :] += chances / 2
    chances = wider
  return float(min(1.0, chances[: sum(sizes) + int(sum(differences)) + 1].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values of several tests, such that any falls below a level by chance with that probability (Holm 1979)."""
  adjusted = [0.0] * len(p_values)
  highest = 0.0
  for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
    highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
    adjusted[i] = highest
  return adjusted
