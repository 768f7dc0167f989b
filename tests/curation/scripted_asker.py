"""An asker whose answers are a script's, and a program that samples with it and may be killed:

python -m tests.curation.scripted_asker TOKENIZER FILE SECONDS
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from qwen3_jax.curation.rejection_sampling import rejection_sample
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.asking import Answer
from qwen3_jax.rollout.multi_turn import Ended, Trajectory


class Said(NamedTuple):
  """One answer: all of its text."""

  text: str
  score: float = 1.0
  ended: Ended = "done"
  sampled: bool = True  # False: one token was inserted


class ScriptedAsker:
  """Answers `script(problem, number of the sample, seed)`; remembers the ids it was asked, block by block."""

  def __init__(self, tokenizer: Tokenizer, script: Callable[[Problem, int, int], Said], seconds: float = 0.0):
    self.tokenizer = tokenizer
    self.lock = threading.Lock()
    self.asked: list[list[str]] = []
    self._script, self._seconds = script, seconds

  def ask(self, params: object, problems: Sequence[Problem], samples: int, seed: int) -> list[list[Answer]]:
    assert self.lock.locked()
    self.asked.append([problem.id for problem in problems])
    time.sleep(self._seconds)
    return [[self._answer(self._script(problem, i, seed)) for i in range(samples)] for problem in problems]

  def _answer(self, said: Said) -> Answer:
    tokens = [*self.tokenizer.encode(said.text), *([self.tokenizer.im_end_id] if said.ended == "done" else [])]
    sampled = [True] * len(tokens)
    sampled[0] = said.sampled
    trajectory = Trajectory(tokens=tokens, sampled=sampled, ended=said.ended, infos=[{"score": said.score}])
    return Answer(trajectory, said.score, 0)


def problem(i: int) -> Problem:
  return Problem(f"p{i}", "mathematics", "sums", f"What is {i} plus {i}?", {"kind": "exact"}, str(2 * i))


def by_chance(problem: Problem, number: int, seed: int) -> Said:
  """Right half of the time, in one of many wordings."""
  rng = random.Random(f"{problem.id} {number} {seed}")
  right = rng.random() < 0.5
  word = rng.choice(["so", "hence", "thus"])
  answer = problem.reference if right else "unknown"
  return Said(f"<think>\nTwice the number, {word} {answer}.\n</think>\n\n{answer}", float(right))


def main(tokenizer: Path, file: Path, seconds: float) -> None:
  asker = ScriptedAsker(Tokenizer.from_pretrained(tokenizer), by_chance, seconds)
  rejection_sample(asker, [problem(i) for i in range(40)], 4, 2, file, seed=5, at_a_time=3)


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
