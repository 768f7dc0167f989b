"""Makes problems of reasoning-gym in a process of its own, so that nothing they depend on differs from run to run:
some families go through sets, whose order hangs on PYTHONHASHSEED, or draw from the process's own generators.

Reads one JSON object, the arguments of `reasoning_gym.reasoning_gym_problems`, from standard input, and writes
{"problems": [...]} or {"error": why not}.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from qwen3_jax.problems.lossless_json import pack
from qwen3_jax.problems.problem import Problem

# Families that store a right answer elsewhere: the field of the metadata.
_STORED_ELSEWHERE = {"graph_color": "possible_answer", "rubiks_cube": "example_correct_answer"}
_CHUNK = 500  # items of one of the library's data sets: how many it has can decide what they are
_TRIES = 20  # items that are known already, and one for each known one, before a family counts as used up


def main() -> None:
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the library prints
  request = json.load(sys.stdin)
  try:
    problems = [
      dataclasses.asdict(problem)
      for family in request["families"]
      for problem in _problems(family, request["count"], request["seed"], request["config"].get(family, {}))
    ]
    json.dump({"problems": problems}, replies)
  except ValueError as error:
    json.dump({"error": str(error)}, replies)
  replies.close()


def _problems(family: str, count: int, seed: int, config: dict[str, Any]) -> list[Problem]:
  found: dict[str, Problem] = {}
  known = 0  # items since the last new problem
  entries = _entries(family, seed, config)
  while len(found) < count:
    problem = _problem(family, *next(entries), config)
    known += 1
    if problem is not None and problem.id not in found:
      found[problem.id] = problem
      known = 0
    if known == _TRIES + len(found):
      raise ValueError(f"family {family!r} has only {len(found)} different problems, fewer than {count}")
  return list(found.values())


def _entries(family: str, seed: int, config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
  """(category, item), without end."""
  chunk = 0
  while True:
    start = int.from_bytes(hashlib.sha256(f"{family} {seed} {chunk}".encode()).digest()[:4]) >> 1
    _seed(start)
    made = _data_set(family, config | {"seed": start, "size": _CHUNK})
    for number in range(_CHUNK):
      _seed(start + number)
      yield made.category, made[number]
    chunk += 1


def _seed(seed: int) -> None:
  random.seed(seed)
  np.random.seed(seed)


def _data_set(family: str, options: dict[str, Any]) -> Any:
  from reasoning_gym.factory import create_dataset

  try:
    return create_dataset(family, **options)
  except (TypeError, AssertionError, ValueError) as error:
    raise ValueError(f"config of {family}: {error}") from None


def _problem(family: str, category: str, entry: dict[str, Any], config: dict[str, Any]) -> Problem | None:
  """None where the library stores no answer."""
  stored = entry["metadata"][_STORED_ELSEWHERE[family]] if family in _STORED_ELSEWHERE else entry["answer"]
  reference = json.dumps(stored) if isinstance(stored, dict) else str(stored)
  if not reference.strip() or "Integral(" in reference:  # what the library could not integrate
    return None
  prompt = entry["question"]
  digest = hashlib.sha256(f"{prompt}\0{reference}".encode()).hexdigest()[:16]
  verifier = _verifier(family, entry, reference, config)
  return Problem(f"reasoning_gym/{family}/{digest}", category, family, prompt, verifier, reference)


def _verifier(family: str, entry: dict[str, Any], reference: str, config: dict[str, Any]) -> dict[str, Any]:
  """The library's scorer where it is sound, else a verifier of ours."""
  metadata = entry["metadata"]
  match family:
    case "puzzle24":  # its scorer does not look at which numbers are used
      return {"kind": "arithmetic", "numbers": list(metadata["numbers"]), "target": 24}
    case "countdown":  # its scorer evaluates the answer as Python
      return {"kind": "arithmetic", "numbers": list(metadata["numbers"]), "target": int(metadata["target"])}
    case "coin_flip":  # its scorer gives 1 for a beginning of the answer, such as 0
      return {"kind": "numeric", "answer": reference, "relative": 0.002}
    case "gsm_symbolic":  # its scorer loses the sign
      return {"kind": "numeric", "answer": reference}
    case "calendar_arithmetic" if reference.lstrip("-").isdigit():  # more than 1 for wrong answers where -1 is right
      return {"kind": "numeric", "answer": reference}
    case "number_sorting":  # its scorer lets each number be wrong by 1
      return {"kind": "sets", "ordered": True}
    case "polynomial_equations":  # its scorer gives 1 only without rounding
      return {"kind": "sets", "absolute": 0.0011}
    case "game_of_life":  # its scorer looks at a part of the answer
      return {"kind": "exact", "ignore": ["space"]}
    case "figlet_font" | "letter_jumble" | "spell_backward":  # their scorers take longer answers that begin right
      return {"kind": "exact", "ignore": ["case", "space"]}
  kept = {name: value for name, value in entry.items() if name in ("answer", "metadata")}
  return {"kind": "reasoning_gym", "family": family, "entry": pack(kept)} | ({"config": config} if config else {})


if __name__ == "__main__":
  main()
