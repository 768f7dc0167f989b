"""What each kind takes for right and for wrong; hypothesis against arithmetic of Python's own."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.arithmetic import evaluate
from qwen3_jax.rewards.final_answer import NoAnswer, final_answer
from qwen3_jax.rewards.numeric import read_number
from qwen3_jax.rewards.registry import check_problem, verify, verify_all
from qwen3_jax.rewards.safe_expression import safe_expression
from qwen3_jax.rewards.sets import split_items


def problem(reference="", **verifier):
  made = Problem("p", "d", "s", "?", verifier, reference)
  check_problem(made)
  return made


def scores(problem, responses):
  return [verdict.score for verdict in verify_all([problem] * len(responses), responses)]


def test_mathematics():
  for reference, right, wrong in [
    (
      "\\frac{1}{2}",
      ["\\boxed{0.5}", "so the answer is $\\frac12$.", "1/2", "**Answer:** \\dfrac{2}{4}", "\\boxed{2^{-1}}", ".5"],
      ["\\boxed{2}", "\\boxed{0.51}", "\\boxed{-\\frac12}", "I do not know", "\\boxed{1/2 or 2}"],
    ),
    ("x^2+2x+1", ["\\boxed{(x+1)^2}", "x**2 + 2*x + 1", "$1 + 2x + x^2$"], ["\\boxed{(x-1)^2}", "\\boxed{x}", "1"]),
    ("\\{1,2,3\\}", ["\\boxed{\\{3,1,2\\}}"], ["\\boxed{\\{1,2\\}}", "\\boxed{\\{1,2,4\\}}"]),
    ("[0,1)", ["\\boxed{[0,1)}"], ["\\boxed{[0,1]}"]),
    ("2\\sqrt{3}", ["\\boxed{\\sqrt{12}}", "sqrt(12)"], ["\\boxed{\\sqrt{3}}"]),
    ("1,234", ["1234", "\\boxed{1234.0}"], ["\\boxed{1.234}", "1235"]),
  ]:
    made = problem(reference, kind="mathematics")
    assert scores(made, right) == [1.0] * len(right), reference
    assert scores(made, wrong) == [0.0] * len(wrong), reference


def test_exact():
  paris = problem(kind="exact", answer=["Paris", "Paname"])
  assert scores(paris, ["paris", "The answer is **Paris**.", "\\boxed{\\text{Paname}}"]) == [1, 1, 1]
  assert scores(paris, ["Rome", "Paris, Rome"]) == [0, 0]
  strict = problem("Paris", kind="exact", ignore=[])
  assert scores(strict, ["Paris", "paris", "<answer>Paris</answer>", "<answer>Paris"]) == [1, 0, 1, 0]
  loose = problem("to be, or not", kind="exact", ignore=["case", "punctuation", "space"])
  assert scores(loose, ["To be or not!", "to be or knot"]) == [1, 0]
  assert scores(problem("42", kind="exact"), ["So it is 42", "\\boxed{42.0}", "43"]) == [1, 1, 0]
  lines = problem("1 2\n3 4", kind="exact")
  assert scores(lines, ["Answer:\n1 2\n3 4", "```\n1 2\n3 4\n```", "1 2\n3 5"]) == [1, 1, 0]
  pattern = problem(kind="exact", pattern="(a|b)+c", ignore=["case"])
  assert scores(pattern, ["ABC", "abac", "ab", "xabc"]) == [1, 1, 0, 0]


def test_numeric():
  for text, value in {
    "1,234.50": "1234.5", "\\frac{-1}{2}": "-1/2", "2 1/2": "5/2", "-2\\frac{1}{2}": "-5/2", "x = 12 \\text{ cm}": "12",
    "5 \\times 10^{3}": "5000", "2.5e-3": "1/400", "1 000": "1000", "$\\$12$": "12", "12\\%": "12", ".5": "1/2",
  }.items():  # fmt: skip
    assert read_number(text) == Fraction(value), text
  for text in (
    "",
    "12 13",
    "1/0",
    "\\frac{1}{0}",
    "1,23",
    "10**10**10",
    "1e99999",
    "nan",
    "inf",
    "x",
    "--1",
    "1" * 500,
  ):
    with pytest.raises(ValueError):
      read_number(text)
  third = problem("1/3", kind="numeric", absolute=0.01)
  assert scores(third, ["\\boxed{0.33}", "1/3", "the answer is 0.34.", "0.35", "-1/3"]) == [1, 1, 1, 0, 0]
  big = problem(kind="numeric", answer=1e6, relative=1e-3)
  assert scores(big, ["1000999", "1,001,001", "1e6"]) == [1, 0, 1]


def test_sets():
  roots = problem(kind="sets", answer=[1, "1/2", "x"])
  assert scores(roots, ["x, 0.5, 1", "\\boxed{\\{1, 0.5, x\\}}", "1, 1/2", "1, 1, x", "[1; 1/2; x]"]) == [1, 1, 0, 0, 1]
  ordered = problem("[1, 2, 2]", kind="sets", ordered=True, absolute=0.1)
  assert scores(ordered, ["1, 2.05 and 2", "2, 1, 2", "['1', '2', '2']", "1, 2"]) == [1, 0, 1, 0]
  assert scores(problem(kind="sets", answer=[]), ["\\boxed{\\emptyset}", "\\boxed{\\{\\}}", "0"]) == [1, 1, 0]
  assert split_items("(1, 2), {3, 4}") == ["(1, 2)", "{3, 4}"]


def test_arithmetic():
  made = problem("(8 - 4) * 6 * 1", kind="arithmetic", numbers=[8, 4, 6, 1], target=24)
  right = ["(8-4)*6*1", "\\boxed{(8 - 4) \\times 6 \\div 1 = 24}", "The answer is 6*(8-4)/1."]
  wrong = [
    "24",
    "(8-4)*6",
    "8+4+6+1",
    "(8-4)*6*1*1",
    "8/0+4+6+1",
    "84-61",
    "(8-4)*6**1",
    "int('24')*8*4*6*1",
    "8,4,6,1",
  ]
  assert scores(made, right) == [1.0] * 3
  assert scores(made, wrong) == [0.0] * len(wrong)


trees = st.recursive(
  st.integers(0, 20).map(str),
  lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({' '.join(parts)})"),
  max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(trees)
def test_arithmetic_is_pythons(text):
  value, used = evaluate(text)
  assert value == eval(text)
  assert sorted(used) == sorted(
    int(word) for word in text.replace("(", " ").replace(")", " ").split() if word.isdigit()
  )


@settings(max_examples=100, deadline=None)
@given(st.fractions(max_denominator=1000), st.sampled_from(["{}", "\\boxed{{{}}}", "so the answer is ${}$.", "x = {}"]))
def test_a_number_is_itself_and_no_other(number, form):
  made = Problem("p", "", "", "", {"kind": "numeric", "answer": str(number)})
  assert verify(made, form.format(number)).right
  assert not verify(made, form.format(number + 1)).right
  latex = f"{'-' if number < 0 else ''}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"
  assert verify(made, form.format(latex)).right


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-50, 50), max_size=6), st.randoms(use_true_random=False), st.sampled_from(["{}", "[{}]"]))
def test_collections_are_multisets(items, random, form):
  made = Problem("p", "", "", "", {"kind": "sets", "answer": items})
  shuffled = random.sample(items, len(items))
  assert verify(made, f"\\boxed{{{form.format(', '.join(map(str, shuffled)))}}}").right == (bool(items) or form != "{}")
  assert not verify(made, ", ".join(map(str, [*items, 7]))).right


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(0, 0.5))
def test_tolerances_are_the_definition(found, expected, absolute, relative):
  made = Problem(
    "p", "", "", "", {"kind": "numeric", "answer": repr(expected), "absolute": absolute, "relative": relative}
  )
  exact = [Fraction(repr(value)) for value in (found, expected)]
  close = abs(exact[0] - exact[1]) <= max(Fraction(absolute), Fraction(relative) * abs(exact[1]))
  assert verify(made, f"\\boxed{{{found!r}}}").right == close


def test_final_answers():
  for response, mode, reference, answer in [
    ("\\boxed{1} then \\boxed{ {2} }", "final", "", "{2}"),
    ("first 1, the answer is 2. Or 3?", "final", "", "2"),
    ("x^2 + 1", "final", "", "x^2 + 1"),
    ("12 apples", "final", "", "12"),
    ("<answer>1</answer> <answer>\nb c\n</answer>", "block", "", "b c"),
    ("The answer is: Blue.", "block", "red", "Blue"),
    ("The answer is: Blue.", "block", "red.", "Blue."),
    ("**Answer:**\n1 2\n3 4\n", "block", "0\n0", "1 2\n3 4"),
    ("`abc`", "block", "", "abc"),
    (" as it is ", "whole", "", "as it is"),
  ]:
    assert final_answer(response, mode, reference) == answer, response
  for response in ("", " \n", "\\boxed{1} \\boxed{2", "\\boxed{}", "x" * 200_001):
    with pytest.raises(NoAnswer):
      final_answer(response)


def test_formulas_are_no_code():
  x = 0.7
  for text in ("x^2/2 + C", "-sin(x)*exp(3*x)/3", "sqrt(x)**(1/2)", "2*pi*x"):
    assert math.isfinite(eval(safe_expression(text, {"x"}), {**vars(math), "C": 1, "x": x}))
  code = [
    "Integral(x, x)",
    "__import__('os')",
    "x.a",
    "(lambda: x)()",
    "exp(x, evaluate=False)",
    "[x]",
    "x if x else x",
  ]
  other = ["y", "9**9**9", "2**101", "'x'", "True", "1" * 40, "(" * 300 + "x" + ")" * 300, "", "x +"]
  for text in code + other:
    with pytest.raises(ValueError):
      safe_expression(text, {"x"})
