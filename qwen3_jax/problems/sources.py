"""Problems by name, as configs write them.

| spec | problems |
|---|---|
| `jsonl:FILE` | of a file that `records.write_problems` wrote |
| `reasoning-gym:FAMILIES:COUNT[:SEED[:CONFIG]]` | COUNT of each family, comma-separated, or `all`; extra `rl` |
| `cups:COUNT[:SEED[:LEAST-MOST[:numbered]]]` | the built-in task of `cups.py`, with so many swaps |

CONFIG is a JSON object: of a family, the library's options.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.data.sources import SourceError
from qwen3_jax.problems.problem import Problem

KINDS = ("jsonl", "reasoning-gym", "cups")


def check_spec(spec: str) -> str | None:
  """Why `spec` names no problems, or None; opens nothing."""
  kind, colon, rest = spec.partition(":")
  if kind not in KINDS or not colon or not rest:
    return f"{spec!r}: expected kind:..., kind one of {', '.join(KINDS)}.{nearest.sentence(kind, KINDS)}"
  try:
    if kind == "reasoning-gym":
      _gym(rest)
    elif kind == "cups":
      _cups(rest)
  except ValueError:
    forms = {"reasoning-gym": "FAMILIES:COUNT[:SEED[:CONFIG]]", "cups": "COUNT[:SEED[:LEAST-MOST[:numbered]]]"}
    return f"{spec!r}: expected {kind}:{forms[kind]}"
  return None


def open_problems(spec: str) -> list[Problem]:
  """Raises SourceError for a spec that names none, ValueError for malformed problems."""
  if (problem := check_spec(spec)) is not None:
    raise SourceError(problem)
  kind, _, rest = spec.partition(":")
  if kind == "jsonl":
    from qwen3_jax.problems.records import read_problems

    try:
      return read_problems(Path(rest))
    except OSError as error:
      raise SourceError(f"{spec!r}: {error.strerror or error}") from None
  if kind == "cups":
    from qwen3_jax.problems.cups import cups_problems

    return cups_problems(*_cups(rest))
  try:
    from qwen3_jax.problems.reasoning_gym import families, reasoning_gym_problems
  except ImportError as error:
    raise ImportError(f"{spec!r} needs the package {error.name}: pip install 'qwen3_jax[rl]'") from error
  names, count, seed, options = _gym(rest)
  return reasoning_gym_problems(families() if names == ["all"] else names, count, seed, options)


def _gym(rest: str) -> tuple[list[str], int, int, dict[str, Any] | None]:
  names, rest = rest.split(":", 1)
  count, seed, config = _fields(rest, "0", "")
  options = json.loads(config) if config else None
  if not (options is None or isinstance(options, dict)):
    raise ValueError(config)
  return names.split(","), int(count), int(seed), options


def _cups(rest: str) -> tuple[int, int, tuple[int, int], bool]:
  count, seed, swaps, style = _fields(rest, "0", "6-6", "")
  least, most = swaps.split("-")
  if style not in ("", "numbered"):
    raise ValueError(style)
  return int(count), int(seed), (int(least), int(most)), style == "numbered"


def _fields(rest: str, *defaults: str) -> list[str]:
  """The fields of a spec, the last of which may hold colons; what is missing has its default."""
  given = rest.split(":", len(defaults))
  missing = len(defaults) + 1 - len(given)
  return [*given, *defaults[len(defaults) - missing :]]
