"""Tracking a ball under cups: a task that small models learn to reason about.

A ball starts under one of five cups, which are then swapped in pairs; under which cup does it end? Careful traces list
the ball's place after every swap; hasty ones answer at once, as a model does that has not learnt to think.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from qwen3_jax.problems.problem import Problem

CUPS = "abcde"


class Trace(NamedTuple):
  problem: Problem
  thinking: str
  careful: bool


def cups_problems(count: int, seed: int, swaps: tuple[int, int] = (6, 6)) -> list[Problem]:
  """`count` different problems of a number of swaps within `swaps`, both inclusive; sub-domains are their numbers."""
  rng = random.Random(f"cups {seed}")
  problems: dict[str, Problem] = {}
  while len(problems) < count:
    problem = _problem(rng, rng.randint(*swaps))
    problems.setdefault(problem.id, problem)
  return list(problems.values())


def places(problem: Problem) -> list[str]:
  """The ball's place after each swap."""
  start, *swaps = problem.prompt.split()
  found = []
  for swap in swaps:
    start = {swap[0]: swap[1], swap[1]: swap[0]}.get(start, start)
    found.append(start)
  return found


def cups_traces(problems: list[Problem], hasty: float, seed: int) -> list[Trace]:
  """A trace of every problem, a share of them `hasty`: thinking that tracks nothing. All end in the right answer."""
  rng = random.Random(f"traces {seed}")
  traces = []
  for problem in problems:
    careful = rng.random() >= hasty
    traces.append(Trace(problem, " ".join(places(problem)) if careful else "hm", careful))
  return traces


def is_careful(thinking: str) -> bool:
  """Whether a trace tracks the ball step by step, rightly or not."""
  return len(thinking.split()) > 1


def _problem(rng: random.Random, swaps: int) -> Problem:
  start = place = rng.choice(CUPS)
  pairs = []
  for _ in range(swaps):
    a, b = rng.sample(CUPS, 2)
    if place not in (a, b) and rng.random() < 0.5:
      a = place
    pairs.append(a + b)
    place = {a: b, b: a}.get(place, place)
  prompt = " ".join([start, *pairs])
  return Problem(
    id=f"cups-{prompt.replace(' ', '-')}",
    domain="logic",
    sub_domain=f"{swaps} swaps",
    prompt=prompt,
    verifier={"kind": "exact"},
    reference=place,
  )
