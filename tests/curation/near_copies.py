"""Questions that are copies of others, but for what does not make them another question."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence

from qwen3_jax.problems.problem import Problem

_FRAMES = (
  "Hi there! I have been stuck on this for an hour, could you help me?\n\n{}\n\nThanks a lot in advance.",
  "{}\n\nPut your final result in a box.",
  "Exercise 14. {}",
  "Consider the task below and respond with nothing but its result.\n\n{}",
)


def frame(text: str, rng: random.Random) -> str:
  return rng.choice(_FRAMES).format(text)


def typeset(text: str, rng: random.Random) -> str:
  """Other case, spaces and marks."""
  return (
    re.sub(r"[.!?]\s", lambda match: f"{match.group()[0]}  ", text).swapcase().replace("\n", "\n\n").replace("*", " * ")
  )


def typos(text: str, rng: random.Random) -> str:
  """Two letters swapped in some of the longer words."""

  def swap(match: re.Match[str]) -> str:
    word = match.group()
    if rng.random() > 0.15:
      return word
    i = rng.randrange(1, len(word) - 2)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]

  return re.sub(r"\b[a-z]{6,}\b", swap, text)


COPIES: dict[str, Callable[[str, random.Random], str]] = {
  "exact": lambda text, rng: text, "framed": frame, "typeset": typeset, "typos": typos,
}  # fmt: skip


def near_copies(validation: Sequence[Problem], count: int, seed: int) -> list[tuple[str, Problem]]:
  """(kind, problem): copies of validation problems, in turn."""
  rng = random.Random(seed)
  kinds = [*COPIES, "reworded"]
  made = []
  for i in range(count):
    name = kinds[i % len(kinds)]
    problem = validation[(i * 3 + i // len(validation)) % len(validation)]
    change = COPIES.get(name)
    prompt = change(problem.prompt, rng) if change else _reworded(problem, validation)
    made.append((name, dataclasses.replace(problem, id=f"copy-{i}", prompt=prompt)))
  return made


def _reworded(problem: Problem, validation: Sequence[Problem]) -> str:
  """What is asked in other words: the sentences that others of its kind do not have."""
  others = [other.prompt for other in validation if other.sub_domain == problem.sub_domain and other.id != problem.id]
  own = [
    part
    for part in re.split(r"(?<=[.:?])\s+|\n", problem.prompt)
    if part and not any(part in other for other in others)
  ]
  return f"Please work this out for me, and be so kind as to double-check it: {' '.join(own)}"
