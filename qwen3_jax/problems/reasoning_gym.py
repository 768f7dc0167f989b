"""Problems of the library reasoning-gym: procedural tasks (Stojanovski et al. 2025, "Reasoning Gym")."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.task import datasets

# Families whose scorer cannot be trusted, and no other verifier takes its place. Audited by tests/problems.
EXCLUDED = {
  "boxnet": "no right answer is stored, and the scorer raises on JSON that is no list of steps",
  "composite": "a mixture of the other families",
  "game_of_life_halting": "the scorer takes every answer for True",
  "propositional_logic": "no right answer is stored, and a copied premise scores 1",
  "rush_hour": "no right answer is stored",
}


def families() -> list[str]:
  """Families that can be verified: all but `EXCLUDED`. Raises ImportError naming the extra to install."""
  return sorted(set(datasets()) - set(EXCLUDED))


def reasoning_gym_problems(
  families: Sequence[str], count: int, seed: int, config: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Problem]:
  """`count` different problems of each family, family after family; the domain is the library's category.

  The same arguments give the same problems and ids, on any machine with the same version of the library; a larger count
  only appends to each family's. Seeds share no more problems than chance has it.

  Args:
    config: options of the library for a family, e.g. {"countdown": {"min_numbers": 3}}.

  Raises ValueError for a family that is unknown or excluded, or has fewer problems, and for a config it does not take;
  ImportError naming the extra to install; RuntimeError where the library itself fails.
  """
  config = config or {}
  for family in [*families, *config]:
    if family in EXCLUDED:
      raise ValueError(f"family {family!r} cannot be verified: {EXCLUDED[family]}")
    if family not in datasets():
      raise ValueError(f"family {family!r}: reasoning_gym has none of that name.{nearest.or_all(family, datasets())}")
  if count < 0:
    raise ValueError(f"count={count}, expected 0 or more")
  request = {
    "families": list(families),
    "count": count,
    "seed": seed,
    "config": {key: dict(config[key]) for key in config},
  }
  paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
  done = subprocess.run(
    [sys.executable, "-m", "qwen3_jax.problems.reasoning_gym_process"],
    input=json.dumps(request),
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"},
  )
  if done.returncode:
    raise RuntimeError(f"reasoning-gym failed: {done.stderr.strip()[-500:]}")
  reply = json.loads(done.stdout)
  if "error" in reply:
    raise ValueError(reply["error"])
  return [Problem(**problem) for problem in reply["problems"]]
