"""Kind `arithmetic`: an expression that uses given numbers once each and has a given value (Countdown, 24)."""

from __future__ import annotations

import ast
from fractions import Fraction

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.final_answer import final_answer
from qwen3_jax.rewards.options import check_names, option, shorten
from qwen3_jax.rewards.verdict import Verdict

_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*", "[": "(", "]": ")"})
_ALLOWED = frozenset("0123456789+-*/() ")
_MAX_CHARACTERS = 400


def check(problem: Problem) -> None:
  """Options: `numbers`, whole numbers that are all used once each; `target`, the value of the expression.

  Raises ValueError.
  """
  spec = problem.verifier
  check_names(spec, ("numbers", "target"))
  numbers = option(spec, "numbers", None, (list, tuple))
  if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
    raise ValueError(f"verifier.numbers={numbers!r}: expected whole numbers from 0 on")
  option(spec, "target", None, int)


def verify_here(problem: Problem, response: str) -> Verdict | None:
  spec = problem.verifier
  found = final_answer(response, "block", problem.reference)
  text = found.translate(_SIGNS).replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
  left, equals, right = text.rpartition("=")
  if equals and right.strip() == str(spec["target"]):
    text = left
  try:
    value, used = evaluate(text)
  except ValueError as error:
    return Verdict(0.0, str(error))
  if sorted(used) != sorted(spec["numbers"]):
    return Verdict(0.0, f"{shorten(found)} uses {sorted(used)} instead of {sorted(spec['numbers'])}")
  if value != spec["target"]:
    return Verdict(0.0, f"{shorten(found)} is {shorten(str(value))} instead of {spec['target']}")
  return Verdict(1.0)


def evaluate(text: str) -> tuple[Fraction, list[int]]:
  """Value and numbers of an expression of whole numbers, + - * / and brackets. Nothing is run. Raises ValueError."""
  if len(text) > _MAX_CHARACTERS:
    raise ValueError(f"an expression of {len(text)} characters, more than {_MAX_CHARACTERS}")
  if not set(text) <= _ALLOWED or "**" in text or "//" in text:
    raise ValueError(f"{shorten(text)} is no expression of whole numbers with + - * / and brackets")
  try:
    tree = ast.parse(text.strip(), mode="eval").body
    used: list[int] = []
    return _value(tree, used), used
  except (SyntaxError, RecursionError, MemoryError):
    raise ValueError(f"{shorten(text)} is no expression") from None
  except ZeroDivisionError:
    raise ValueError(f"{shorten(text)} divides by zero") from None


def _value(node: ast.expr, used: list[int]) -> Fraction:
  match node:
    case ast.Constant(value=int(number)):
      used.append(number)
      return Fraction(number)
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return -_value(operand, used)
    case ast.UnaryOp(op=ast.UAdd(), operand=operand):
      return _value(operand, used)
    case ast.BinOp(left=left, op=sign, right=right):
      one, other = _value(left, used), _value(right, used)
      match sign:
        case ast.Add():
          return one + other
        case ast.Sub():
          return one - other
        case ast.Mult():
          return one * other
        case ast.Div():
          return one / other
  raise ValueError(f"{type(node).__name__} is no part of an expression")
