"""Kind `sets`: the answer is a collection of numbers or texts, in any order or in one."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from qwen3_jax.evaluation.answers import normalise
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.final_answer import check_mode, final_answer
from qwen3_jax.rewards.numeric import read_number, within
from qwen3_jax.rewards.options import check_names, expected_answer, option, shorten
from qwen3_jax.rewards.verdict import Verdict

_MAX_ITEMS = 2000
_OPENING, _CLOSING = "([{", ")]}"
_EMPTY = re.compile(r"\\(?:emptyset|varnothing)|∅")


def check(problem: Problem) -> None:
  """Options: `answer`, a list or its text; `ordered` (false), `absolute`, the tolerance of each number (0),
  `extract` as in `final_answer` ("block"). Items count as often as they occur; numbers are equal in any spelling.

  Raises ValueError.
  """
  spec = problem.verifier
  check_names(spec, ("answer", "ordered", "absolute", "extract"))
  check_mode(spec)
  option(spec, "ordered", False, bool)
  if not 0 <= option(spec, "absolute", 0, (int, float)) < float("inf"):
    raise ValueError(f"verifier.absolute={spec['absolute']!r}: expected a finite number from 0 on")
  _expected(problem)


def verify_here(problem: Problem, response: str) -> Verdict | None:
  spec = problem.verifier
  expected = _expected(problem)
  found = final_answer(response, spec.get("extract", "block"), problem.reference)
  if len(found) > 1000 + 8 * sum(len(str(item)) for item in expected):
    return Verdict(0.0, f"an answer of {len(found)} characters, where {len(expected)} items are expected")
  items = split_items(found)
  if len(items) != len(expected):
    return Verdict(0.0, f"{len(items)} items instead of {len(expected)}: {shorten(found)}")
  same = lambda one, other: _same(one, other, spec.get("absolute", 0))
  left, right = [_item(item) for item in items], [_item(item) for item in expected]
  if spec.get("ordered", False):
    equal = all(map(same, left, right))
  else:
    equal = _matched(left, right, same)
  return (
    Verdict(1.0) if equal else Verdict(0.0, f"{shorten(found)} instead of {shorten(', '.join(map(str, expected)))}")
  )


def split_items(text: str) -> list[str]:
  """Items of `{1, 2}`, `[1; 2]`, `1, 2 and 3`; what stands in brackets or quotes is not cut."""
  text = _EMPTY.sub("", text.replace("\\{", "{").replace("\\}", "}").replace("\\left", "").replace("\\right", ""))
  text = text.strip().strip("$").strip()
  if text[:1] in _OPENING and text[:1] and _end(text) == len(text) - 1:
    text = text[1:-1]
  text = re.sub(r",?\s+(?:and|or)\s+", ", ", text)
  items, depth, start, quote = [], 0, 0, ""
  for place, letter in enumerate(text):
    if quote:
      quote = "" if letter == quote else quote
    elif letter in "'\"" and not text[start:place].strip():
      quote = letter
    elif letter in _OPENING:
      depth += 1
    elif letter in _CLOSING:
      depth -= 1
    elif letter in ",;" and depth <= 0:
      items.append(text[start:place])
      start = place + 1
  items.append(text[start:])
  if len(items) > _MAX_ITEMS:
    raise ValueError(f"{len(items)} items, more than {_MAX_ITEMS}")
  return [item.strip() for item in items] if text.strip() else []


def _end(text: str) -> int:
  """Where the bracket closes that begins the text; -1 if it does not."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter in _OPENING) - (letter in _CLOSING)
    if depth == 0:
      return place
  return -1


def _expected(problem: Problem) -> list[Any]:
  answer = problem.verifier.get("answer", problem.reference)
  if isinstance(answer, list | tuple):
    return list(answer)  # an empty collection can be right
  return list(split_items(str(expected_answer(problem))))


def _item(item: Any) -> Fraction | str:
  text = str(item).strip()
  if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
    text = text[1:-1]
  try:
    return read_number(text)
  except ValueError:
    return normalise(text[:1000])


def _same(one: Fraction | str, other: Fraction | str, absolute: float) -> bool:
  if isinstance(one, Fraction) and isinstance(other, Fraction):
    return within(one, other, absolute)
  return one == other


def _matched(left: list[Any], right: list[Any], same: Any) -> bool:
  """Whether the items pair up: numbers, sorted, are within their tolerances if they are in any pairing."""
  split = lambda items: (
    sorted(item for item in items if isinstance(item, Fraction)),
    sorted(item for item in items if isinstance(item, str)),
  )
  (numbers, texts), (other_numbers, other_texts) = split(left), split(right)
  return len(numbers) == len(other_numbers) and texts == other_texts and all(map(same, numbers, other_numbers))
