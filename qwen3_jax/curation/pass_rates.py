"""How often a model solves each of many problems, kept on disk as it is found out."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from scipy.stats import binomtest

from qwen3_jax.curation.plans import by_id, difference, digest
from qwen3_jax.problems.problem import Problem

Judge = Callable[[Sequence[Problem]], list[list[bool]]]  # whether each answer to each problem was right


@dataclasses.dataclass(frozen=True)
class PassRate:
  """Of `answers` independent answers to a problem, `right` were right."""

  right: int
  answers: int

  def __post_init__(self):
    if not 0 <= self.right <= self.answers:
      raise ValueError(f"right={self.right} of answers={self.answers}: expected a number from 0 to {self.answers}")

  @property
  def rate(self) -> float:
    """The estimate; 0 without answers."""
    return self.right / self.answers if self.answers else 0.0

  def interval(self, level: float) -> tuple[float, float]:
    """Clopper-Pearson: holds the model's true pass rate with probability `level` or more, whatever that rate is.

    The true rate is below it with a probability of (1 - level) / 2 at most, and above it likewise. The lower bound is
    0 exactly if no answer was right, the upper 1 exactly if all were (both without answers).
    """
    return _interval(self.right, self.answers, level)


@functools.cache
def _interval(right: int, answers: int, level: float) -> tuple[float, float]:
  if not answers:
    return 0.0, 1.0
  found = binomtest(right, answers).proportion_ci(level, method="exact")
  return float(found.low), float(found.high)


def measure_pass_rates(
  problems: Sequence[Problem],
  judge: Judge,
  path: Path,
  settings: Mapping[str, Any],
  at_a_time: int = 64,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, PassRate]:
  """The pass rate of every problem, by id.

  `path` is JSONL: `settings` in the first line, then a line for each problem, in their order. What it holds already is
  not asked again, so a run that was killed goes on where it was, to the same file. Problems may be added later.

  Args:
    judge: called with up to `at_a_time` problems; the answers that its environment failed to judge are left out.
    settings: JSON-able, of what the rates depend on: model, samples, sampling, seed.
    on_progress: called with (problems done, problems in all).

  Raises ValueError for ids that occur twice, and for a file of other settings, or of another problem under the same id,
  OSError if it cannot be read or written.
  """
  known = by_id(problems)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a+b") as file:
    found = _resume(file, path, settings, known)
    left = [problem for problem in problems if problem.id not in found]
    on_progress(len(problems) - len(left), len(problems))
    for start in range(0, len(left), at_a_time):
      asked = left[start : start + at_a_time]
      lines = []
      for problem, outcomes in zip(asked, judge(asked), strict=True):
        found[problem.id] = PassRate(sum(outcomes), len(outcomes))
        row = {"id": problem.id, "problem": _digest(problem), **dataclasses.asdict(found[problem.id])}
        lines.append(json.dumps(row) + "\n")
      _append(file, "".join(lines))
      on_progress(len(problems) - len(left) + start + len(asked), len(problems))
  return {problem.id: found[problem.id] for problem in problems}


def _resume(
  file: BinaryIO, path: Path, settings: Mapping[str, Any], problems: Mapping[str, Problem]
) -> dict[str, PassRate]:
  """What the file holds; a line that a kill cut short is removed, and a new file gets its first line."""
  file.seek(0)
  whole = file.read()
  whole = whole[: whole.rfind(b"\n") + 1]
  file.truncate(len(whole))
  if not whole:
    _append(file, json.dumps(dict(settings)) + "\n")
    return {}
  found: dict[str, PassRate] = {}
  for number, text in enumerate(whole.decode(errors="surrogateescape").splitlines(), 1):
    try:
      row = json.loads(text)
      if number == 1:
        if changed := difference(row, json.loads(json.dumps(dict(settings)))):
          was, now = map(json.dumps, (changed.was, changed.now))
          raise ValueError(f"{changed.name} was {was}, is now {now}; give another file, or remove this one to ask anew")
        continue
      if row["id"] in problems and row["problem"] != _digest(problems[row["id"]]):
        raise ValueError(f"{row['id']!r} was another problem then; remove the file to ask anew")
      found[row["id"]] = PassRate(row["right"], row["answers"])
    except (KeyError, TypeError) as error:
      raise ValueError(f"{path}, line {number}: no pass rate ({type(error).__name__}: {error})") from None
    except ValueError as error:
      raise ValueError(f"{path}, line {number}: {error}") from None
  return found


def _append(file: BinaryIO, text: str) -> None:
  """On disk when this returns."""
  file.write(text.encode())
  file.flush()
  os.fsync(file.fileno())


def _digest(problem: Problem) -> str:
  """Of what the pass rate depends on."""
  return digest([problem.prompt, problem.verifier, problem.reference])
