"""Options of a verifier spec, checked; messages name the option, its value and the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.problems.problem import Problem


def check_names(spec: Mapping[str, Any], names: Iterable[str]) -> None:
  """Raises ValueError for an option that is none of `names`; every kind knows `kind` and `seconds`."""
  known = {"kind", "seconds", *names}
  for name in spec:
    if name not in known:
      raise ValueError(f"verifier.{name}: no such option of kind {spec['kind']!r}.{nearest.or_all(name, known)}")


def option(spec: Mapping[str, Any], name: str, default: Any, types: type | tuple[type, ...]) -> Any:
  """The value of an option. Raises ValueError if it is of another type."""
  value = spec.get(name, default)
  types = types if isinstance(types, tuple) else (types,)
  if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
    expected = " or ".join(kind.__name__ for kind in types)
    raise ValueError(f"verifier.{name}={value!r}: expected {expected}, found {type(value).__name__}")
  return value


def expected_answer(problem: Problem) -> Any:
  """`verifier["answer"]`, else `reference`. Raises ValueError where there is neither."""
  answer = problem.verifier.get("answer", problem.reference)
  if answer in ("", None, []):
    raise ValueError(f"verifier.answer={answer!r}: nothing would be right; give it, or a reference")
  return answer


def shorten(text: str, characters: int = 80) -> str:
  """The beginning of a text as a message shows it."""
  return repr(text if len(text) <= characters else text[:characters] + "…")
