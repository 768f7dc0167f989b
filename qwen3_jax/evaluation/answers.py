"""The final answer of a response, and whether it is the expected one."""

from __future__ import annotations

import collections
import re
from fractions import Fraction

_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # with what is escaped, so that \{ is none
_SAYS = re.compile(r"\banswer\b[*_]*\s*(?:is\b\s*[:=]?|[:=])[*_\s]*", re.IGNORECASE)
_SAID = re.compile(r"(?<!\b[A-Z][a-z])[.!]\s|,?\s(?:because|since)\b")  # ends what the answer is; not Dr. and the like
_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)")
_MIXED = re.compile(r"(\d+)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_FRACTION = re.compile(r"\\[dt]?frac(?:\{(-?\d+)\}\{(\d+)\}|(\d)(\d))")
_WRAPPERS = re.compile(
  r"\\(?:text|mathrm|mathbf|left|right|displaystyle)(?![a-zA-Z])|\\[,;!()\[\]]|\^\{?\\circ\}?|°|\\?\$|[{}]|\*\*"
)
_GROUPS = re.compile(r"(?<=\d) (?=\d{3}\b)")  # 1 000


def extract_answer(response: str) -> str:
  r"""The last \boxed{...}, else what the last "answer is" or "answer:" says, else the last number, else ""."""
  boxed = _last_boxed(response)
  if boxed is not None:
    return boxed
  says = collections.deque(_SAYS.finditer(response), maxlen=1)
  said = response[says[0].end() :] if says else ""
  if said:
    return _SAID.split(said.splitlines()[0])[0].strip("*_ \t").rstrip(".!").rstrip("*_ ")
  numbers = _NUMBER.findall(response)
  return numbers[-1] if numbers else ""


def _last_boxed(response: str) -> str | None:
  """What the last box that is closed holds; in one pass, since a response may open very many."""
  contents: list[int] = []  # where they start, of the groups that are open; -1 where it is no box
  start = end = -1
  for brace in _BRACE.finditer(response):
    match brace.group():
      case "{":
        contents.append(-1)
      case "}" if contents:
        opened = contents.pop()
        if opened > start:
          start, end = opened, brace.start()
      case text if text.startswith("\\boxed"):
        contents.append(brace.end())
  return response[start:end].strip() if start >= 0 else None


def normalise(answer: str) -> str:
  """Without markup, space that means nothing, case and a last full stop; numbers, also percentages, in one spelling."""
  text = answer.replace("\N{MINUS SIGN}", "-").replace("\\%", "%")
  text = _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
  text = _FRACTION.sub(lambda m: f"{m[1] or m[3]}/{m[2] or m[4]}", text)
  text = " ".join(_WRAPPERS.sub("", text).split()).rstrip(".").lower()
  text = re.sub(r" ?([^\w\s]) ?", r"\1", _GROUPS.sub("", text)).strip()
  text = re.sub(r"^\((\w)\)$", r"\1", text)  # a choice
  number = _as_number(text)
  return text if number is None else str(number)


def same_answer(answer: str, expected: str) -> bool:
  r"""Equal after `normalise`, and not empty; 0.5, 1/2 and \frac{1}{2} are equal."""
  return bool(normalise(answer)) and normalise(answer) == normalise(expected)


def _as_number(text: str) -> Fraction | None:
  number = text.removesuffix("%")
  if not _NUMBER.fullmatch(number):
    return None
  try:
    return Fraction(number.replace(",", ""))
  except (ValueError, ZeroDivisionError):
    return None
