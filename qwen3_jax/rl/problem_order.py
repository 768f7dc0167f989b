"""In which order problems are asked: shuffled epochs, without what no longer teaches anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen3_jax.data.records import DataError
from qwen3_jax.problems.problem import Problem

_SMALLEST_SHARE = 0.25  # of the problems that an epoch asks, at least


class ProblemOrder:
  """Endless. With `relearn`, an epoch leaves out problems that were always or never solved when last asked.

  Pass rates of the cold-start model go stale as the policy learns: this is their re-estimation online. A problem that
  was left out comes back an epoch later. An epoch of fewer than a quarter of the problems takes those left out, too.
  """

  def __init__(self, problems: Sequence[Problem], seed: int, relearn: bool):
    if not problems:
      raise ValueError("no problems")
    self._problems = list(problems)
    self._numbers = {problem.id: i for i, problem in enumerate(problems)}
    if len(self._numbers) < len(problems):
      raise ValueError("problems: ids occur twice")
    self._seed, self._relearn = seed, relearn
    self._epoch, self._next = 0, 0
    self._left_out: set[int] = set()  # in the epoch under way: problems settled in the one before
    self._settled: set[int] = set()  # in this one, so far

  def take(self, count: int) -> list[Problem]:
    taken: list[Problem] = []
    order = self._order()
    while len(taken) < count:
      if self._next == len(order):
        self._epoch, self._next = self._epoch + 1, 0
        self._left_out, self._settled = self._settled, set()
        order = self._order()
      taken.append(self._problems[order[self._next]])
      self._next += 1
    return taken

  def report(self, problem: Problem, pass_rate: float) -> None:
    """How often the answers to a problem that was taken were right."""
    number = self._numbers[problem.id]
    if self._relearn and pass_rate in (0.0, 1.0):
      self._settled.add(number)
    else:
      self._settled.discard(number)

  def _order(self) -> list[int]:
    order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._problems)).tolist()
    kept = [number for number in order if number not in self._left_out]
    return kept if len(kept) >= _SMALLEST_SHARE * len(order) else order

  def get_state(self) -> dict[str, Any]:
    """JSON-able."""
    named = lambda numbers: sorted(self._problems[i].id for i in numbers)
    return {
      "epoch": self._epoch,
      "next": self._next,
      "left_out": named(self._left_out),
      "settled": named(self._settled),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Raises DataError if it is of other problems."""
    unknown = sorted({*state["left_out"], *state["settled"]} - self._numbers.keys())
    if unknown:
      raise DataError(f"state of the problems' order: no problem {unknown[0]!r}; were the problems changed?")
    self._epoch, self._next = state["epoch"], state["next"]
    self._left_out = {self._numbers[id] for id in state["left_out"]}
    self._settled = {self._numbers[id] for id in state["settled"]}
