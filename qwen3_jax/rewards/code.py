"""Kind `code`: a Python program against tests, in the sandbox."""

from __future__ import annotations

import functools
import re
from typing import Any

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.code_harness import failures, function_tests, program
from qwen3_jax.rewards.final_answer import MAX_RESPONSE, NoAnswer
from qwen3_jax.rewards.options import check_names, option, shorten
from qwen3_jax.rewards.verdict import Verdict
from qwen3_jax.sandbox.run import Limits, Outcome, run_python

_BLOCK = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:\n[ \t]*)?```", re.DOTALL)
_SECONDS = 10.0
_PYTHON = ("python", "py", "python3", "")


def check(problem: Problem) -> None:
  """Options: `tests`, [{"stdin": text, "stdout": text}, ...], or tests of functions, all in one run: `assertions`,
  ["assert f(1) == 2", ...], and `cases`, [{"call": "f(1)", "result": 2}, ...], where tuples count as lists; `seconds`
  of each run (10); `memory`, bytes (1 GiB); `partial` (false): the share of passed tests counts, else all must pass.

  Raises ValueError, SandboxError where programs cannot be isolated.
  """
  spec = problem.verifier
  check_names(spec, ("tests", "assertions", "cases", "memory", "partial"))
  lists = {name: option(spec, name, [], (list, tuple)) for name in ("tests", "assertions", "cases")}
  if not any(lists.values()):
    raise ValueError("verifier.tests: none, and no assertions or cases; any program would be right")
  for test in lists["tests"]:
    if not isinstance(test, dict) or test.keys() != {"stdin", "stdout"} or not all(map(_is_text, test.values())):
      raise ValueError(f"verifier.tests: expected {{'stdin': text, 'stdout': text}}, found {test!r:.100}")
  function_tests(lists["assertions"], lists["cases"])
  option(spec, "partial", False, bool)
  _limits(problem)
  _try_sandbox()


def verify_here(problem: Problem, response: str) -> Verdict | None:
  return None


def verify_apart(problem: Problem, response: str) -> Verdict:
  """Runs in this process: the sandbox isolates."""
  spec, limits = problem.verifier, _limits(problem)
  source = program_of(response)
  partial = spec.get("partial", False)
  passed = total = 0
  first = ""
  functions = function_tests(spec.get("assertions", []), spec.get("cases", []))
  if functions:
    code, word = program(source, functions)
    outcome = run_python(code, stdin=word + "\n", limits=limits)
    failed = failures(outcome.stdout, word, functions)
    passed, total = len(functions) - len(failed), len(functions)
    if failed:
      number = min(failed)
      ended = f"; {_ended(outcome)}" if outcome.status != "ok" else ""
      first = f"{shorten(functions[number].text)}: {failed[number]}{ended}"
  for number, test in enumerate(spec.get("tests", []), 1):
    total += 1
    if first and not partial:
      continue
    outcome = run_python(source, stdin=test["stdin"], limits=limits)
    if outcome.status == "ok" and _lines(outcome.stdout) == _lines(test["stdout"]):
      passed += 1
    elif not first:
      printed = f"printed {shorten(outcome.stdout)} instead of {shorten(test['stdout'])}"
      first = f"test {number}: {printed if outcome.status == 'ok' else _ended(outcome)}"
  if passed == total:
    return Verdict(1.0)
  return Verdict(passed / total if partial else 0.0, first)


def program_of(response: str) -> str:
  """The last block of Python between ``` marks, else the last of any language, else all. Raises NoAnswer for none."""
  if len(response) > MAX_RESPONSE:
    raise NoAnswer(f"a response of {len(response)} characters, more than {MAX_RESPONSE}")
  blocks = _BLOCK.findall(response)
  python = [text for language, text in blocks if language.lower() in _PYTHON]
  source = python[-1] if python else blocks[-1][1] if blocks else response
  if not source.strip():
    raise NoAnswer("no program")
  if "\0" in source:
    raise NoAnswer("a program with a null character")
  return source


def _limits(problem: Problem) -> Limits:
  spec = problem.verifier
  memory = option(spec, "memory", Limits().memory_bytes, int)
  return Limits(seconds=float(spec.get("seconds", _SECONDS)), memory_bytes=memory)


@functools.cache
def _try_sandbox() -> None:
  run_python("")


def _ended(outcome: Outcome) -> str:
  last = outcome.stderr.strip().rpartition("\n")[2]
  return f"ended with {outcome.status}" + (f" ({shorten(last, 200)})" if last else "")


def _lines(text: str) -> list[str]:
  """Without space at the ends of lines and of the text."""
  return [line.rstrip() for line in text.strip().splitlines()]


def _is_text(value: Any) -> bool:
  return isinstance(value, str)
