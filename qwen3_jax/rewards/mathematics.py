"""Kind `mathematics`: the answer equals a reference, symbolically (library math-verify, Hugging Face)."""

from __future__ import annotations

import functools
import logging
import re
from fractions import Fraction

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.final_answer import check_mode, final_answer
from qwen3_jax.rewards.numeric import read_number
from qwen3_jax.rewards.options import check_names, expected_answer, shorten
from qwen3_jax.rewards.verdict import Verdict

_MAX_CHARACTERS = 2000  # of an answer; what the parser takes grows with it
_MAX_DEPTH = 40  # of brackets
_NUMBER = re.compile(r"[+-]?[\d.,]+(?:/\d+)?|[+-]?\\[dt]?frac\{\d+\}\{\d+\}")


def check(problem: Problem) -> None:
  """Options: `answer`, LaTeX or plain, by default the problem's reference; `extract` as in `final_answer`.

  Raises ValueError, ImportError naming the extra to install.
  """
  check_names(problem.verifier, ("answer", "extract"))
  check_mode(problem.verifier)
  answer = expected_answer(problem)
  if not isinstance(answer, str | int | float):
    raise ValueError(f"verifier.answer={answer!r}: expected text or a number")
  if len(str(answer)) > _MAX_CHARACTERS:
    raise ValueError(f"verifier.answer: {len(str(answer))} characters, expected at most {_MAX_CHARACTERS}")


@functools.cache
def prepare() -> None:
  """Imports and warms what `verify_apart` needs. Raises ImportError naming the extra to install."""
  try:
    from math_verify import parse, verify
  except ImportError:
    raise ImportError("verifier kind 'mathematics' needs math-verify: pip install 'qwen3_jax[rl]'") from None
  for name in ("math_verify.parser", "math_verify.grader", "math_verify.utils"):
    logging.getLogger(name).setLevel(logging.ERROR)
  for one, other in (("\\frac{1}{2}", "0.5"), ("x^2+2x+1", "(x+1)^2"), ("\\{1,\\sqrt{2}\\}", "(1,2)")):
    verify(parse(_boxed(one), parsing_timeout=None), parse(_boxed(other), parsing_timeout=None), timeout_seconds=None)


def verify_here(problem: Problem, response: str) -> Verdict | None:
  """What needs no algebra: answers that are spelled like the reference, and two numbers that are not rounded."""
  expected = _plain(str(expected_answer(problem)))
  found = final_answer(response, problem.verifier.get("extract", "final"))
  if len(found) > _MAX_CHARACTERS:
    return Verdict(0.0, f"an answer of {len(found)} characters, more than {_MAX_CHARACTERS}")
  if _depth(found) > _MAX_DEPTH:
    return Verdict(0.0, f"brackets deeper than {_MAX_DEPTH}")
  found = _plain(found)
  if found == expected:
    return Verdict(1.0)
  numbers = [_number(found), _number(expected)]
  if None in numbers or (numbers[0] != numbers[1] and "." in found + expected):
    return None
  return Verdict(1.0) if numbers[0] == numbers[1] else _wrong(found, expected)


def verify_apart(problem: Problem, response: str) -> Verdict:
  from math_verify import parse, verify

  expected = str(expected_answer(problem))
  found = final_answer(response, problem.verifier.get("extract", "final"))
  parsed = [parse(_boxed(_plain(text)), parsing_timeout=None) for text in (expected, found)]
  if not parsed[1]:
    return Verdict(0.0, f"{shorten(found)} is no mathematics")
  return Verdict(1.0) if verify(*parsed, timeout_seconds=None) else _wrong(found, expected)


def _wrong(found: str, expected: str) -> Verdict:
  return Verdict(0.0, f"{shorten(found)} instead of {shorten(expected)}")


def _boxed(text: str) -> str:
  return f"\\boxed{{{text}}}"


def _plain(text: str) -> str:
  """Without dollars and space around it; Python's signs for powers and products are LaTeX's."""
  text = text.strip().strip("$").strip().replace("\N{MINUS SIGN}", "-")
  return text if "\\" in text else text.replace("**", "^").replace("*", " \\cdot ")


def _number(text: str) -> Fraction | None:
  try:
    return read_number(text) if _NUMBER.fullmatch(text) else None
  except ValueError:
    return None


def _depth(text: str) -> int:
  deepest = depth = 0
  for letter in text:
    depth += (letter in "([{") - (letter in ")]}")
    deepest = max(deepest, depth)
  return deepest
