"""Kind `numeric`: the answer is a number, within a tolerance."""

from __future__ import annotations

import re
from fractions import Fraction

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.final_answer import check_mode, final_answer
from qwen3_jax.rewards.options import check_names, expected_answer, option, shorten
from qwen3_jax.rewards.verdict import Verdict

_MAX_CHARACTERS = 400  # of a number
_MAX_EXPONENT = 400
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = re.compile(
  rf"(?P<sign>[+-]?)\s*(?:(?P<whole>[0-9]+)\s+(?=[0-9]+/))?(?P<top>{_DECIMAL})"
  r"(?:\s*/\s*(?P<bottom>[0-9]+)|[eE](?P<exponent>[+-]?[0-9]{1,4})|\s*[*×x]\s*10\^(?P<power>[+-]?[0-9]{1,4}))?"
)
_FRACTION = re.compile(r"\\[dt]?frac(?:\{\s*(-?[0-9]+)\s*\}\{\s*([0-9]+)\s*\}|([0-9])([0-9])(?![0-9]))")
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf)(?=\{)|\\left|\\right|\\[,;!: ]|\\(?=[$%])|[{}$]")
_UNIT = re.compile(r"\s*[A-Za-z%°€£²³/ ]{0,30}\.?\s*")


def check(problem: Problem) -> None:
  """Options: `answer`, a number or its text; `absolute` and `relative`, the tolerance (either suffices, both 0 by
  default); `extract` as in `final_answer`.

  Raises ValueError.
  """
  spec = problem.verifier
  check_names(spec, ("answer", "absolute", "relative", "extract"))
  check_mode(spec)
  for name in ("absolute", "relative"):
    if not 0 <= option(spec, name, 0, (int, float)) < float("inf"):
      raise ValueError(f"verifier.{name}={spec[name]!r}: expected a finite number from 0 on")
  read_number(str(expected_answer(problem)))


def verify_here(problem: Problem, response: str) -> Verdict | None:
  spec = problem.verifier
  found = final_answer(response, spec.get("extract", "final"))
  try:
    number = read_number(found)
  except ValueError as error:
    return Verdict(0.0, str(error))
  expected = read_number(str(expected_answer(problem)))
  if within(number, expected, spec.get("absolute", 0), spec.get("relative", 0)):
    return Verdict(1.0)
  return Verdict(0.0, f"{shorten(found)} instead of {expected_answer(problem)}")


def within(number: Fraction, expected: Fraction, absolute: float = 0, relative: float = 0) -> bool:
  """Whether |number - expected| is at most `absolute` or `relative` times |expected|; exact."""
  return abs(number - expected) <= max(Fraction(absolute), Fraction(relative) * abs(expected))


def read_number(text: str) -> Fraction:
  r"""The number that a text is, exactly: 1,234.5; 1/3; 2 \frac{1}{3}; 1e-3; 5 \times 10^{3}; x = 12 cm; 50% is 50.

  Raises ValueError for any other text, also for more than one number.
  """
  if len(text) > _MAX_CHARACTERS:
    raise ValueError(f"{shorten(text)} is too long for a number")
  plain = text.replace("\N{MINUS SIGN}", "-").replace("\\times", "×").replace("\\cdot", "×")
  plain = _FRACTION.sub(lambda part: f" {part[1] or part[3]}/{part[2] or part[4]}", plain)
  plain = _MARKUP.sub("", plain).strip().removeprefix("(").removesuffix(")").strip()
  before, equals, after = plain.rpartition("=")
  plain = (after if equals and not any(letter.isdigit() for letter in before) else plain).strip().lstrip("€£")
  match = _NUMBER.match(plain)
  if match is None or not _UNIT.fullmatch(plain, match.end()):
    raise ValueError(f"{shorten(text)} is not a number")
  exponent = int(match["exponent"] or match["power"] or 0)
  if abs(exponent) > _MAX_EXPONENT:
    raise ValueError(f"{shorten(text)}: an exponent beyond {_MAX_EXPONENT}")
  bottom = int(match["bottom"] or 1)
  if not bottom:
    raise ValueError(f"{shorten(text)} divides by zero")
  top = Fraction(match["top"].replace(",", "").replace(" ", "").rstrip("."))
  number = (top / bottom + int(match["whole"] or 0)) * Fraction(10) ** exponent
  return -number if match["sign"] == "-" else number
