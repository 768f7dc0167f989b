"""Tracking a ball under cups: a task that small models learn to reason about.

A ball starts under one of five cups, which are then swapped in pairs; under which cup does it end?
"""

from __future__ import annotations

import random
import re

from qwen3_jax.problems.problem import Problem

CUPS = "abcde"


def cups_problems(count: int, seed: int, lengths: tuple[int, int] = (6, 6), numbered: bool = False) -> list[Problem]:
  """`count` different problems of a number of swaps within `lengths`, both inclusive; sub-domains are their numbers.

  `numbered` swaps have their number in front, and the ball's first place is number 0 (`0 b1 ab2 ca`): easier to find
  where how many there are varies. There is no space before a number, since the tokenizer would make it a token.
  """
  rng = random.Random(f"cups {seed}")
  problems: dict[str, Problem] = {}
  while len(problems) < count:
    problem = _problem(rng, rng.randint(*lengths), numbered)
    problems.setdefault(problem.id, problem)
  return list(problems.values())


def words(problem: Problem) -> list[str]:
  """The ball's first place, then the pairs of cups that are swapped."""
  return re.findall(f"[{CUPS}]+", problem.prompt)


def places(problem: Problem) -> list[str]:
  """The ball's place after each swap."""
  place, *swaps = words(problem)
  found = []
  for swap in swaps:
    place = {swap[0]: swap[1], swap[1]: swap[0]}.get(place, place)
    found.append(place)
  return found


def is_numbered(problem: Problem) -> bool:
  return problem.prompt[0].isdigit()


def _problem(rng: random.Random, length: int, numbered: bool) -> Problem:
  start = place = rng.choice(CUPS)
  pairs = []
  for _ in range(length):
    a, b = rng.sample(CUPS, 2)
    if place not in (a, b) and rng.random() < 0.5:
      a = place
    pairs.append(a + b)
    place = {a: b, b: a}.get(place, place)
  prompt = "".join(f"{n} {word}" for n, word in enumerate([start, *pairs])) if numbered else " ".join([start, *pairs])
  return Problem(
    id=f"cups-{prompt.replace(' ', '-')}",
    domain="logic",
    sub_domain=f"{length} swaps",
    prompt=prompt,
    verifier={"kind": "exact"},
    reference=place,
  )
