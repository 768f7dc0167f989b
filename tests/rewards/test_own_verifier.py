"""Verifiers in modules of one's own: named by problems, found by this process and by those that judge."""

import sys

import pytest

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.registry import check_problem, is_immediate, verify, verify_all

QUICK = """
from qwen3_jax.rewards.options import check_names
from qwen3_jax.rewards.verdict import Verdict

def check(problem):
  check_names(problem.verifier, ("letter",))

def verify_here(problem, response):
  return Verdict(response.count(problem.verifier["letter"]) / len(response))
"""
SLOW = """
import os, time
from qwen3_jax.rewards.verdict import Verdict

def check(problem):
  pass

def verify_apart(problem, response):
  if response == "hang":
    time.sleep(60)
  return Verdict(1.0, str(os.getpid())) if response == "right" else 0.5
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
  """Names of modules that are importable only from a folder that was not there when the package was."""
  monkeypatch.syspath_prepend(tmp_path)
  for name, source in {"own_quick": QUICK, "own_slow": SLOW, "own_broken": "import nothing_of_this_name"}.items():
    (tmp_path / f"{name}.py").write_text(source)
  (tmp_path / "own_empty.py").write_text("def check(problem): pass\n")
  yield
  for name in ("own_quick", "own_slow", "own_broken", "own_empty"):
    sys.modules.pop(name, None)


def make(module, **options):
  return Problem("p", "d", "s", "?", {"kind": f"module:{module}", **options})


def test_a_quick_one_judges_here_by_degrees(modules):
  problem = make("own_quick", letter="e")
  check_problem(problem)
  assert is_immediate(problem)
  assert verify(problem, "eeea").score == 0.75
  failed = verify(problem, "")  # divides by zero
  assert failed.score == 0 and "ZeroDivisionError" in failed.reason


def test_a_slow_one_judges_in_a_process_that_is_killed(modules):
  import os

  problem = make("own_slow", seconds=1)
  check_problem(problem)
  assert not is_immediate(problem)
  right, hung, no_verdict = verify_all([problem] * 3, ["right", "hang", "wrong"], workers=1)
  assert right.right and right.reason != str(os.getpid())
  assert hung.score == 0 and "1 s" in hung.reason
  assert no_verdict.score == 0 and "returned 0.5, expected a Verdict" in no_verdict.reason


@pytest.mark.parametrize(
  ("problem", "message"),
  [
    (make("own_quick", leter="e"), "leter: no such option of kind 'module:own_quick'. Did you mean 'letter'"),
    (make("own_quik"), "kind='module:own_quik': cannot be imported from the current folder or PYTHONPATH"),
    (make("own_broken"), "nothing_of_this_name"),
    (make("own_empty"), "own_empty must have check, and verify_here or verify_apart"),
  ],
)
def test_checks_name_what_is_wrong(modules, problem, message):
  with pytest.raises(ValueError, match=f"problem 'p': .*{message}"):
    check_problem(problem)
