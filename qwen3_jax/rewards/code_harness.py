"""The program that tests a model's functions in the sandbox, and what it prints, read back.

Expected values stay outside wherever a test is an equation: the program prints both sides, rebuilt from plain types so
that no overloaded comparison counts. Tests of truth alone (`assert isclose(f(1), 2)`) print True, marked by a random
word that the model's code is not given; code that searches its interpreter's frames could find it.
"""

from __future__ import annotations

import ast
import dataclasses
import secrets
from typing import Any

_PROGRAM = """
def _main():
  import sys
  source, tests, word = {source!r}, {tests!r}, sys.stdin.readline().strip()
  floats, infinity = float.__repr__, float("inf")

  def plain(value):
    for kind, exact in ((bool, bool), (int, int.__pos__), (float, float.__pos__), (str, str.__str__)):
      if isinstance(value, kind):
        value = exact(value)
        return ("float", floats(value)) if kind is float and not -infinity < value < infinity else value
    if value is None or type(value) in (bytes, complex):
      return value
    if isinstance(value, list):
      return [plain(item) for item in list.__iter__(value)]
    if isinstance(value, tuple):
      return tuple(plain(item) for item in tuple.__iter__(value))
    for kind in (set, frozenset):
      if isinstance(value, kind):
        return {{plain(item) for item in kind.__iter__(value)}}
    if isinstance(value, dict):
      return {{plain(key): plain(item) for key, item in dict.items(value)}}
    raise TypeError("a result of type " + type(value).__name__ + " cannot be compared")

  out, evaluate, text, namespace = sys.stdout, eval, repr, {{"__name__": "solution"}}
  exec(compile(source, "solution.py", "exec"), namespace)
  for number, sides in enumerate(tests):
    try:
      line = "value " + text([plain(evaluate(side, namespace)) for side in sides])
    except Exception as error:
      line = "error " + type(error).__name__ + ": " + text(str(error)[:200])
    out.write("\\n" + word + " " + str(number) + " " + line + "\\n")
  out.flush()


_main()
"""


@dataclasses.dataclass(frozen=True)
class FunctionTest:
  """An equation of two expressions, or of one and a value."""

  sides: tuple[str, ...]  # evaluated in the sandbox: one or two
  result: Any = None  # of one side
  text: str = ""  # for messages
  as_json: bool = False  # tuples are lists


def function_tests(assertions: list[str], cases: list[dict[str, Any]]) -> list[FunctionTest]:
  """Raises ValueError for what is neither `assert ...` nor {"call": expression, "result": value}."""
  return [_of_assertion(assertion) for assertion in assertions] + [_of_case(case) for case in cases]


def program(source: str, tests: list[FunctionTest]) -> tuple[str, str]:
  """(program, its word: the first line of stdin)."""
  return _PROGRAM.format(source=source, tests=[test.sides for test in tests]), secrets.token_hex(16)


def failures(stdout: str, word: str, tests: list[FunctionTest]) -> dict[int, str]:
  """Number of each test that did not pass -> why."""
  lines: dict[str, list[str]] = {}
  for line in stdout.split("\n"):
    if line.startswith(word + " "):
      place, _, rest = line[len(word) + 1 :].partition(" ")
      lines.setdefault(place, []).append(rest)
  failed: dict[int, str] = {}
  for number, test in enumerate(tests):
    found = lines.get(str(number), [])
    if len(found) != 1:
      failed[number] = "it did not get that far"
    elif found[0].startswith("error "):
      failed[number] = found[0].removeprefix("error ")
    else:
      left, *right = ast.literal_eval(found[0].removeprefix("value "))
      expected = right[0] if right else test.result
      if test.as_json:
        left, expected = _lists(left), _lists(expected)
      if left != expected:
        failed[number] = f"{left!r:.100} instead of {expected!r:.100}"
  return failed


def _of_case(case: Any) -> FunctionTest:
  if not isinstance(case, dict) or case.keys() != {"call", "result"} or not isinstance(case["call"], str):
    raise ValueError(f"verifier.cases: expected {{'call': an expression, 'result': its value}}, found {case!r:.100}")
  _expression(case["call"], case["call"])
  return FunctionTest((case["call"],), case["result"], case["call"], as_json=True)


def _of_assertion(text: Any) -> FunctionTest:
  try:
    (statement,) = ast.parse(text.strip()).body
  except (SyntaxError, ValueError, AttributeError):
    statement = None
  if not isinstance(statement, ast.Assert):
    raise ValueError(f"verifier.assertions: expected one statement 'assert ...', found {text!r:.100}")
  claim = statement.test
  if isinstance(claim, ast.Compare) and len(claim.ops) == 1 and isinstance(claim.ops[0], ast.Eq | ast.Is):
    left, right = claim.left, claim.comparators[0]
    try:
      result = _finite(ast.literal_eval(right))
    except ValueError:
      return FunctionTest((ast.unparse(left), ast.unparse(right)), text=text)
    return FunctionTest((ast.unparse(left),), result, text)
  return FunctionTest((f"True if ({ast.unparse(claim)}) else False",), True, text)


def _lists(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _lists(item) for key, item in value.items()}
  return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _finite(value: Any) -> Any:
  return ("float", repr(value)) if isinstance(value, float) and not abs(value) < float("inf") else value


def _expression(text: str, shown: str) -> None:
  try:
    ast.parse(text, mode="eval")
  except SyntaxError:
    raise ValueError(f"verifier.cases: {shown!r:.100} is no expression") from None
