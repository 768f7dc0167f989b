"""The final answer of a response, and whether it is the expected one."""

from __future__ import annotations

import re
from fractions import Fraction

_BOXED = "\\boxed{"
_SAYS = re.compile(r"(?:final answer|answer)(?:\s+is)?\s*[:=]?\s*([^\n]+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|-?\.\d+")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_WRAPPERS = re.compile(r"\\(?:text|mathrm|mathbf|left|right|displaystyle|,|;|!)\s*|[${}]|\\[()\[\]]")


def extract_answer(response: str) -> str:
  r"""The last \boxed{...}, else what follows the last "answer is" or "answer:", else the last number, else ""."""
  start = response.rfind(_BOXED)
  if start >= 0:
    depth, begin = 1, start + len(_BOXED)
    for i in range(begin, len(response)):
      depth += {"{": 1, "}": -1}.get(response[i], 0)
      if depth == 0:
        return response[begin:i].strip()
  said = _SAYS.findall(response)
  if said:
    return said[-1].strip().rstrip(".").strip()
  numbers = _NUMBER.findall(response)
  return numbers[-1] if numbers else ""


def normalise(answer: str) -> str:
  """Without markup, units of space, case and a last full stop; numbers in one spelling."""
  text = _FRACTION.sub(r"\1/\2", answer)
  text = _WRAPPERS.sub("", text)
  text = " ".join(text.split()).rstrip(".").strip().lower()
  number = _as_number(text)
  return text if number is None else str(number)


def same_answer(answer: str, expected: str) -> bool:
  """Equal after `normalise`; 0.5, 1/2 and \\frac{1}{2} are equal."""
  return normalise(answer) == normalise(expected)


def _as_number(text: str) -> Fraction | None:
  compact = text.replace(" ", "").removesuffix("%")
  if not _NUMBER.fullmatch(compact):
    return None
  try:
    return Fraction(compact.replace(",", ""))
  except (ValueError, ZeroDivisionError):
    return None
