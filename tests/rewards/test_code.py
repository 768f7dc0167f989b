"""Programs against tests: right, wrong, and those that try to pass without solving anything."""

import pytest

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.code import program_of
from qwen3_jax.rewards.final_answer import NoAnswer
from qwen3_jax.rewards.registry import check_problem, verify, verify_all


def problem(**verifier):
  made = Problem("p", "code", "s", "?", {"kind": "code", **verifier})
  check_problem(made)
  return made


FUNCTION = problem(assertions=["assert f(2) == 4", "assert f(3) in (9,)", "assert f(-1) == abs(1)"])
SQUARE = "def f(x):\n  return x * x"


def test_right_programs():
  assert verify(FUNCTION, f"Here:\n```python\n{SQUARE}\n```\nDone.").right
  assert verify(FUNCTION, f"```\nnot this\n```\n```py\n{SQUARE}\nprint('noise 0 value [4]')\n```").right
  cases = problem(cases=[{"call": "f([1, 2])", "result": {"a": [1, [2]]}}, {"call": "f([])", "result": None}])
  source = "import collections\ndef f(x):\n  if not x: return None\n  d = collections.defaultdict(list)"
  assert not verify(cases, "def f(x): return {'a': [1, 2]}").right
  assert verify(cases, f"{source}\n  d['a'] = [1, (2,)]\n  return d").right
  infinite = problem(assertions=["assert f() == float('inf')", "assert g() == 1e999", "assert h() == (1, {2})"])
  assert verify(infinite, "f = g = lambda: float('inf')\nh = lambda: (1, frozenset([2]))").right
  assert not verify(infinite, "f = g = lambda: float('inf')\nh = lambda: [1, {2}]").right
  adder = problem(tests=[{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 5\n", "stdout": "10\n"}])
  assert verify(adder, "a, b = map(int, input().split())\nprint(a + b, '')").right


@pytest.mark.parametrize(
  "source",
  [
    "def f(x): return 4",
    "",
    "```python\n\n```",
    "def f(x",
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "raise SystemExit",
    # passes every test of truth and every comparison
    "class A:\n  __eq__ = __contains__ = lambda *a: True\n  __repr__ = lambda s: '4'\ndef f(x): return A()",
    "class A(int):\n  __eq__ = lambda *a: True\n  __repr__ = lambda s: '4'\ndef f(x): return A(7)",
    # prints results, and ends
    "import os\nfor n in range(3): print('\\n', n, 'value [4]')\nos._exit(0)",
    "import builtins, sys\nbuiltins.repr = builtins.eval = lambda *a: '[4]'\ndef f(x): return 5",
    "def f(x): return f(x)",
    "print('\\x00\\ud800')",
    "\x00",
    "\ud800",
  ],
)
def test_wrong_programs_score_0_with_a_reason(source):
  verdict = verify(FUNCTION, source)
  assert verdict.score == 0 and verdict.reason


def test_limits_and_partial_scores():
  tests = [{"stdin": "1", "stdout": "1"}, {"stdin": "2", "stdout": "4"}]
  echo = "print(input())"
  assert verify(problem(tests=tests), echo).score == 0
  assert "'2\\n' instead of '4'" in verify(problem(tests=tests), echo).reason
  assert verify(problem(tests=tests, partial=True), echo).score == 0.5
  slow, hungry, good = verify_all(
    [problem(tests=tests[:1], seconds=0.5), problem(tests=tests[:1], memory=1 << 27), problem(tests=tests[:1])],
    ["while True: pass", "data = []\nwhile True: data.append(bytearray(1 << 22))", echo],
  )
  assert (slow.score, hungry.score, good.score) == (0, 0, 1)
  assert "timeout" in slow.reason and "memory" in hungry.reason


def test_programs_in_responses():
  assert program_of("```python\na\n```\n```text\nb\n```") == "a"
  assert program_of("```cpp\nc\n```") == "c"
  assert program_of("plain") == "plain"
  for response in ("", "``` \n\n```", "x" * 200_001):
    with pytest.raises(NoAnswer):
      program_of(response)


@pytest.mark.parametrize(
  ("verifier", "message"),
  [
    ({}, "none"),
    ({"tests": [{"stdin": ""}]}, "expected {'stdin'"),
    ({"assertions": ["f(1) == 2"]}, "expected one statement 'assert ...'"),
    ({"cases": [{"call": "f(", "result": 1}]}, "no expression"),
    ({"test": [], "assertions": ["assert f()"]}, "Did you mean 'tests'"),
    ({"assertions": ["assert f()"], "seconds": 0}, "seconds=0"),
  ],
)
def test_specs_that_are_wrong(verifier, message):
  with pytest.raises(ValueError, match=f"problem 'p': .*{message}"):
    problem(**verifier)
