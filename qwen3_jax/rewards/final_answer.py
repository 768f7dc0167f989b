"""The part of a response that is judged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.evaluation.answers import extract_answer

MODES = ("final", "block", "whole")
MAX_RESPONSE = 200_000  # characters; what is longer is not read
_TAIL = 20_000  # characters at the end in which "the answer is" and numbers are looked for
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_SAYS = re.compile(r"\banswer\b[*_]*\s*(?:is\b\s*[:=]?|[:=])[*_]*[ \t]*\n*", re.IGNORECASE)
_FENCE = re.compile(r"```[\w+-]*\n(.*?)\n?```", re.DOTALL)
_WORD = re.compile(r"(?:^|(?<=\s))(?!(?:sin|cos|tan|log|ln|exp|pi|or|and)\b)[A-Za-z]{2,}(?=[\s.,:;!?]|$)")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|texttt)\{([^{}]*)\}")


class NoAnswer(ValueError):
  """The response has no answer that could be judged; the message says why."""


def check_mode(spec: Mapping[str, Any]) -> None:
  """Raises ValueError for a value of the option `extract` that is no mode."""
  mode = spec.get("extract", "final")
  if mode not in MODES:
    raise ValueError(f"verifier.extract={mode!r}: no such mode.{nearest.or_all(str(mode), MODES)}")


def final_answer(response: str, mode: str = "final", reference: str = "") -> str:
  r"""What is judged: "whole", all of the response; else, of the last <answer>...</answer> or, without one, of all,

  - "final": the last \boxed{...}, else a short line without words, else as `evaluation.answers.extract_answer`;
  - "block", for text and several lines: the last \boxed{...}, else what follows the last "answer is" or "answer:" (to
    the end if `reference` has several lines, else to the end of its line), else all of it; without marks of code, LaTeX
    text and emphasis.

  Raises NoAnswer for what is empty, too long, or a \boxed{ that does not end.
  """
  if len(response) > MAX_RESPONSE:
    raise NoAnswer(f"a response of {len(response)} characters, more than {MAX_RESPONSE}")
  if mode != "whole":
    response = _within_tags(response)
  if mode == "whole":
    answer = response.strip()
  elif mode == "block":
    answer = _block(response, reference)
  elif (boxed := _last_boxed(response)) is not None:
    answer = boxed
  elif _is_formula(response.strip()):
    answer = response.strip()
  else:
    answer = extract_answer(response[-_TAIL:])
  if not answer:
    raise NoAnswer("no answer" if response.strip() else "an empty response")
  return answer


def _is_formula(text: str) -> bool:
  return len(text) <= 100 and "\n" not in text and not _WORD.search(text) and not _SAYS.search(text)


def _last_boxed(response: str) -> str | None:
  """None without one. The last decides, so that a response full of open ones takes no quadratic time."""
  start = response.rfind("\\boxed")
  opened = _BOXED.match(response, start) if start >= 0 else None
  if opened is None:
    return None
  depth = 1
  for brace in _BRACE.finditer(response, opened.end()):
    depth += {"{": 1, "}": -1}.get(brace.group(), 0)
    if depth == 0:
      return response[opened.end() : brace.start()].strip()
  raise NoAnswer("the last \\boxed{ is not closed")


def _within_tags(response: str) -> str:
  start = response.rfind("<answer>")
  if start < 0:
    return response
  end = response.find("</answer>", start)
  if end < 0:
    raise NoAnswer("the last <answer> is not closed")
  return response[start + len("<answer>") : end]


def _block(response: str, reference: str) -> str:
  boxed = _last_boxed(response)
  if boxed is not None:
    return _plain(boxed, reference)
  tail = response[-max(_TAIL, 4 * len(reference)) :]
  said = list(_SAYS.finditer(tail))
  if said and tail[said[-1].end() :].strip():
    text = tail[said[-1].end() :]
    if "\n" not in reference.strip():
      text = text.strip().splitlines()[0].strip("*_ ")
      text = text if reference.endswith(".") else text.removesuffix(".").rstrip("*_ ")
    return _plain(text, reference)
  return _plain(response, reference)


def _plain(text: str, reference: str) -> str:
  text = text.strip("\n\r")
  if text == reference:
    return text
  fence = _FENCE.search(text)
  text = _TEXT.sub(r"\1", fence[1] if fence else text)
  for mark in ("**", "$", "`"):
    if len(text.strip()) > 2 * len(mark) and text.strip().startswith(mark) and text.strip().endswith(mark):
      text = text.strip()[len(mark) : -len(mark)]
  return text if text == reference else text.strip()
