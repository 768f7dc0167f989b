"""Kind `reasoning_gym`: the scorers of the library's procedural tasks (Stojanovski et al. 2025, "Reasoning Gym")."""

from __future__ import annotations

import ast
import functools
import importlib
import math
import re
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.evaluation.answers import same_answer
from qwen3_jax.problems.lossless_json import unpack
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.final_answer import final_answer
from qwen3_jax.rewards.options import check_names, option, shorten
from qwen3_jax.rewards.safe_expression import safe_expression
from qwen3_jax.rewards.verdict import Verdict

_NUMBER = re.compile(r"-?\d{1,300}(?:\.\d{1,300})?")
_EVALUATES = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}  # answers, with Python's eval
_FORMULAS = {"intermediate_integration", "simple_integration", "polynomial_multiplication"}  # parsed as Python by SymPy
_SLOW = _FORMULAS | {
  "rubiks_cube",
  "sokoban",
  "quantum_lock",
  "tower_of_hanoi",
}  # an answer can take long: judged apart
_NOT_A_NUMBER = re.compile(r"nan|inf", re.IGNORECASE)  # complex_arithmetic: exp(-nan) counts as a full score


def check(problem: Problem) -> None:
  """Options: `family`, `entry` (what the library made, see `lossless_json`), `config` of the family, `partial`
  (false): whether scores between 0 and 1, which the library gives for form or likeness, count as they are, or as 0.

  Raises ValueError, ImportError naming the extra to install.
  """
  spec = problem.verifier
  check_names(spec, ("family", "entry", "config", "partial"))
  families = datasets()
  family = option(spec, "family", "", str)
  if family not in families:
    raise ValueError(f"verifier.family={family!r}: reasoning_gym has no such family.{nearest.or_all(family, families)}")
  if not option(spec, "entry", None, dict).keys() >= {"answer", "metadata"}:
    raise ValueError("verifier.entry: expected the fields answer and metadata")
  option(spec, "partial", False, bool)
  _scorer(family, _frozen(option(spec, "config", {}, dict)))


def prepare() -> None:
  """Imports what `verify_apart` needs. Raises ImportError naming the extra to install."""
  datasets()


def verify_here(problem: Problem, response: str) -> Verdict | None:
  return None if problem.verifier["family"] in _SLOW else verify_apart(problem, response)


def verify_apart(problem: Problem, response: str) -> Verdict:
  spec = problem.verifier
  family, entry = spec["family"], unpack(spec["entry"])
  entry.setdefault("question", problem.prompt)
  stored = problem.reference or str(entry["answer"])
  number = _NUMBER.fullmatch(stored.strip())
  found = final_answer(response, "final" if number else "block", stored)
  if len(found) > 1000 + 4 * len(stored):
    return Verdict(0.0, f"an answer of {len(found)} characters, where {len(stored)} are expected")
  if number and same_answer(found, stored):
    return Verdict(1.0)
  if family == "complex_arithmetic" and _NOT_A_NUMBER.search(found):
    return Verdict(0.0, f"{shorten(found)} is not finite")
  if family in _FORMULAS:
    try:
      found = safe_expression(found, _variables(family, entry))
    except ValueError as error:
      return Verdict(0.0, str(error))
  score = float(_scorer(family, _frozen(spec.get("config", {})))(found, entry))
  score = min(score, 1.0) if math.isfinite(score) and score > 0 else 0.0
  if score >= 1.0:
    return Verdict(1.0)
  return Verdict(score if spec.get("partial", False) else 0.0, f"{shorten(found)} scores {score:.3g}")


@functools.cache
def datasets() -> dict[str, Any]:
  """Name -> (class, class of its config) of every family. Raises ImportError naming the extra to install."""
  try:
    from reasoning_gym.factory import DATASETS
  except ImportError:
    raise ImportError("reasoning tasks need reasoning-gym: pip install 'qwen3_jax[rl]'") from None
  for family in _EVALUATES:
    # These scorers call eval on the answer: the name means literals alone in their modules from here on.
    importlib.import_module(DATASETS[family][0].__module__).eval = ast.literal_eval  # type: ignore[attr-defined]
  return DATASETS


@functools.lru_cache(maxsize=256)
def _scorer(family: str, config: tuple[tuple[str, Any], ...]) -> Any:
  from reasoning_gym.factory import create_dataset

  datasets()
  try:
    return create_dataset(
      family, **{"size": 1, "seed": 0, **{name: _thawed(value) for name, value in config}}
    ).score_answer
  except (TypeError, AssertionError) as error:
    raise ValueError(f"verifier.config={dict(config)}: not a config of {family} ({error})") from None


def _frozen(value: Any) -> Any:
  if isinstance(value, dict):
    return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
  return ("list", *map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
  return [_thawed(item) for item in value[1:]] if isinstance(value, tuple) and value[:1] == ("list",) else value


def _variables(family: str, entry: dict[str, Any]) -> set[str]:
  if family == "polynomial_multiplication":
    return set(map(str, entry["metadata"].get("variables", ()))) | set(re.findall(r"\b[a-zA-Z]\b", entry["answer"]))
  return {entry["metadata"]["variable"]}
