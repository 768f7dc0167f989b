"""Every kind against malformed answers; checks of specs; many answers at once."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.reasoning_gym import reasoning_gym_problems
from qwen3_jax.rewards.registry import KINDS, check_problem, verify, verify_all


def make(kind, reference="", **verifier):
  return Problem(kind, "d", "s", "?", {"kind": kind, **verifier}, reference)


@pytest.fixture(scope="module")
def problems():
  gym = reasoning_gym_problems(["simple_integration", "products", "n_queens"], 1, 0)
  return [
    make("arithmetic", "3*8", numbers=[3, 8], target=24),
    make("code", assertions=["assert f(1) == 1"], seconds=1),
    make("exact", "seven"),
    make("exact", pattern="(x+x+)+y"),
    make("mathematics", "\\frac{7}{3}"),
    make("numeric", "7/3"),
    make("sets", "1, 2"),
    *gym,
  ]


def test_every_kind_is_tried(problems):
  assert {problem.verifier["kind"] for problem in problems} == set(KINDS)
  for problem in problems:
    check_problem(problem)


MALFORMED = {
  "empty": "",
  "space": " \n\t ",
  "1 MB": "7" * (1 << 20),
  "1 MB of boxes": "\\boxed{" * (1 << 17),
  "200 KB of answers": "answer: " * 24_000,
  "binary": bytes(range(256)).decode("latin1") * 20 + "\ud800\udfff",
  "deep": "\\boxed{" + "(" * 1500 + "7" + ")" * 1500 + "}",
  "deep lists": "\\boxed{" + "[" * 900 + "]" * 900 + "}",
  "unclosed": "the answer is \\boxed{7",
  "tower": "\\boxed{10**10**10}",
  "latex tower": "\\boxed{9^{9^{9^{9^9}}}}",
  "factorial": "\\boxed{((((9!)!)!)!)!}",
  "sum": "\\boxed{\\sum_{k=1}^{10^{12}} \\sin(k!)}",
  "fractions": "\\boxed{" + "\\frac{1}{1+" * 30 + "2" + "}" * 30 + "}",
  "code": "\\boxed{__import__('os')._exit(0)}",
  "pattern": "x" * 60,
  "not a number": "\\boxed{nan}",
  "division": "\\boxed{7/0}",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_answers_score_0_in_time(problems, name):
  start = time.monotonic()
  verdicts = verify_all(problems, [MALFORMED[name]] * len(problems), seconds=0.4)
  seconds = time.monotonic() - start
  for problem, verdict in zip(problems, verdicts):
    assert verdict.score == 0 and verdict.reason, (problem.id, verdict)
    assert len(verdict.reason) < 2000
  assert seconds < 60, seconds  # four that may take 0.4 s each, on processors that others use too


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["{}", "\\boxed{{{}}}", "answer: {}", "<answer>{}</answer>"]))
def test_kinds_that_are_quick_never_raise(text, form):
  for kind, spec in {
    "numeric": {"answer": "123456.789"},
    "sets": {"answer": [123456, "right one"]},
    "exact": {"answer": "the right one"},
    "arithmetic": {"numbers": [97, 89, 83], "target": 1},
  }.items():
    verdict = verify(make(kind, **spec), form.format(text))
    assert verdict.score == 0 and verdict.reason


def test_order_is_kept_and_bad_specs_score_0():
  half = make("mathematics", "\\frac{1}{2}")
  pairs = [
    (half, "\\boxed{\\sqrt{1/4}}", True),
    (make("numeric", "3"), "3", True),
    (make("nonsense"), "3", False),
    (half, "\\boxed{9^{9^{9^{9^9}}}}", False),
    (make("exact", pattern="a+"), "aaa", True),
    (make("numeric", "no number"), "3", False),
    (half, "\\boxed{\\frac{x}{2x}}", True),
    (make("exact"), "", False),
    (Problem("no JSON", "", "", "", {"kind": "exact", "pattern": "a", "extract": object()}), "a", False),
    (Problem("no kind", "", "", "", {}), "a", False),
  ]
  verdicts = verify_all([pair[0] for pair in pairs], [pair[1] for pair in pairs], workers=1, seconds=2)
  assert [verdict.right for verdict in verdicts] == [pair[2] for pair in pairs]
  assert all(verdict.reason for verdict in verdicts if not verdict.right)
  assert "'mathematics'" not in verdicts[2].reason and "no verifier of kind 'nonsense'" in verdicts[2].reason
  with pytest.raises(ValueError, match="1 problems, but 2 responses"):
    verify_all([half], ["", ""])


def test_time_limits_hold_in_threads():
  made, found = make("mathematics", "\\frac{1}{2}"), []
  work = lambda: found.append(verify(made, "\\boxed{9^{9^{9^{9^9}}}}", seconds=0.5))
  thread = threading.Thread(target=work)
  start = time.monotonic()
  thread.start()
  thread.join(60)
  assert time.monotonic() - start < 60
  assert "0.5 s" in found[0].reason


def test_a_thousand_short_answers_take_no_processes():
  problems = [make("exact", f"name {n}") if n % 2 else make("numeric", str(n)) for n in range(1000)]
  responses = [f"The answer is {'name ' * (n % 2)}{n if n % 3 else n + 1}." for n in range(1000)]
  verify_all(problems[:2], responses[:2])
  start = time.process_time()
  verdicts = verify_all(problems, responses)
  assert time.process_time() - start < 0.5
  assert [verdict.right for verdict in verdicts] == [bool(n % 3) for n in range(1000)]


@pytest.mark.parametrize(
  ("problem", "message"),
  [
    (make("mathematic", "1"), "kind='mathematic': no such kind. Did you mean 'mathematics'"),
    (Problem("p", "", "", "", {}), "kind='': no such kind"),
    (make("numeric", "1", absolut=1), "absolut: no such option of kind 'numeric'. Did you mean 'absolute'"),
    (make("numeric", "1", absolute=-1), "absolute=-1"),
    (make("numeric", "one"), "'one' is not a number"),
    (make("numeric", "1", relative=float("inf")), "relative=inf"),
    (make("mathematics"), "answer='': nothing would be right"),
    (make("exact", "a", extract="boxed"), "extract='boxed': no such mode. Did you mean 'block'|no such mode"),
    (make("exact", pattern="("), "no regular expression"),
    (make("exact", pattern="a", answer="b"), "not both"),
    (make("exact", "a", ignore=["cases"]), "Did you mean 'case'"),
    (make("sets", "1", ordered=1), "ordered=1: expected bool"),
    (make("sets", "1", seconds=0), "seconds=0"),
    (make("arithmetic", numbers=[1.5], target=1), "numbers"),
    (make("arithmetic", numbers=[1], target="1"), "target='1'"),
    (make("reasoning_gym", family="product", entry={}), "family='product'.*Did you mean 'products'"),
    (make("reasoning_gym", family="products", entry={}), "entry"),
    (
      make("reasoning_gym", family="products", entry={"answer": "1", "metadata": {}}, config={"term": 1}),
      "not a config of products",
    ),
  ],
)
def test_checks_name_what_is_wrong(problem, message):
  with pytest.raises(ValueError, match=f"problem .*{message}"):
    check_problem(problem)
