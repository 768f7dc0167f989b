"""Tracking a ball under cups: a task that small models learn to reason about.

A ball starts under one of five cups, which are then swapped in pairs; under which cup does it end?
"""

from __future__ import annotations

import random

from qwen3_jax.problems.problem import Problem

CUPS = "abcde"


def cups_problems(count: int, seed: int, swaps: tuple[int, int] = (6, 6), numbered: bool = False) -> list[Problem]:
  """`count` different problems of a number of swaps within `swaps`, both inclusive; sub-domains are their numbers.

  `numbered` swaps have their number in front: easier to find where their number varies.
  """
  rng = random.Random(f"cups {seed}")
  problems: dict[str, Problem] = {}
  while len(problems) < count:
    problem = _problem(rng, rng.randint(*swaps), numbered)
    problems.setdefault(problem.id, problem)
  return list(problems.values())


def places(problem: Problem) -> list[str]:
  """The ball's place after each swap."""
  start, *swaps = problem.prompt.split()
  found = []
  for swap in swaps[1::2] if is_numbered(problem) else swaps:
    start = {swap[0]: swap[1], swap[1]: swap[0]}.get(start, start)
    found.append(start)
  return found


def is_numbered(problem: Problem) -> bool:
  return any(word.isdigit() for word in problem.prompt.split())


def _problem(rng: random.Random, swaps: int, numbered: bool) -> Problem:
  start = place = rng.choice(CUPS)
  pairs = []
  for _ in range(swaps):
    a, b = rng.sample(CUPS, 2)
    if place not in (a, b) and rng.random() < 0.5:
      a = place
    pairs.append(a + b)
    place = {a: b, b: a}.get(place, place)
  prompt = " ".join([start, *(f"{n} {pair}" if numbered else pair for n, pair in enumerate(pairs, 1))])
  return Problem(
    id=f"cups-{prompt.replace(' ', '-')}",
    domain="logic",
    sub_domain=f"{swaps} swaps",
    prompt=prompt,
    verifier={"kind": "exact"},
    reference=place,
  )
