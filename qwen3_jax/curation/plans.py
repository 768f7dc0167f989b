"""Work that goes on after it was stopped: whether it is still the same work."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen3_jax.problems.problem import Problem


class Difference(NamedTuple):
  name: str
  was: Any
  now: Any


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
  """The first entry, by name, that is not what it was; an absent one is None."""
  for name in sorted(before.keys() | now.keys()):
    if before.get(name) != now.get(name):
      return Difference(name, before.get(name), now.get(name))
  return None


def digest(value: Any) -> str:
  """Of anything JSON-able."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def by_id(problems: Sequence[Problem]) -> dict[str, Problem]:
  """Raises ValueError for an id that occurs twice."""
  counts = collections.Counter(problem.id for problem in problems)
  if twice := [id for id, count in counts.items() if count > 1]:
    raise ValueError(f"problems: id {twice[0]!r} occurs twice")
  return {problem.id: problem for problem in problems}
