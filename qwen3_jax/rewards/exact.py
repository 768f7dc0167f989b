"""Kind `exact`: the answer is one text, one of several, or matches a pattern."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.evaluation.answers import same_answer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.final_answer import check_mode, final_answer
from qwen3_jax.rewards.options import check_names, expected_answer, option, shorten
from qwen3_jax.rewards.verdict import Verdict

IGNORABLE = ("case", "space", "punctuation")
_NUMBER = re.compile(r"-?[0-9.,/]+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def check(problem: Problem) -> None:
  """Options: `answer` (text, or a list of texts of which any is right) or `pattern` (all of the answer must match);
  `ignore`: any of case, space, punctuation, none for character by character; without it, as
  `evaluation.answers.same_answer` has it. `extract` as in `final_answer`; by default "final" for answers that are
  numbers, else "block".

  Raises ValueError.
  """
  spec = problem.verifier
  check_names(spec, ("answer", "pattern", "ignore", "extract"))
  check_mode(spec)
  if "pattern" in spec:
    if "answer" in spec:
      raise ValueError("verifier.pattern: give it or answer, not both")
    try:
      re.compile(option(spec, "pattern", "", str))
    except re.error as error:
      raise ValueError(f"verifier.pattern={spec['pattern']!r}: no regular expression ({error})") from None
  else:
    answers = expected_answer(problem)
    for answer in answers if isinstance(answers, list | tuple) else [answers]:
      if not isinstance(answer, str | int | float):
        raise ValueError(f"verifier.answer={answer!r}: expected text or a list of texts")
  for name in option(spec, "ignore", [], (list, tuple)):
    if name not in IGNORABLE:
      raise ValueError(f"verifier.ignore={name!r}: cannot be ignored.{nearest.or_all(str(name), IGNORABLE)}")


def verify_here(problem: Problem, response: str) -> Verdict | None:
  """None for patterns: some take years to match."""
  spec = problem.verifier
  if "pattern" in spec:
    return None
  answers = expected_answer(problem)
  texts = [str(answer) for answer in (answers if isinstance(answers, list | tuple) else [answers])]
  mode = "final" if all(map(_NUMBER.fullmatch, texts)) else "block"
  found = final_answer(response, spec.get("extract", mode), texts[0])
  longest = max(map(len, texts))
  if len(found) > 1000 + 4 * longest:
    return Verdict(0.0, f"an answer of {len(found)} characters, where {longest} are expected")
  if any(_same(found, text, spec) for text in texts):
    return Verdict(1.0)
  return Verdict(0.0, f"{shorten(found)} instead of {' or '.join(map(shorten, texts))}")


def verify_apart(problem: Problem, response: str) -> Verdict:
  spec = problem.verifier
  found = final_answer(response, spec.get("extract", "block"), problem.reference)
  ignore = spec.get("ignore", ())
  flags = re.IGNORECASE if "case" in ignore else 0
  if re.fullmatch(spec["pattern"], _without(found, [name for name in ignore if name != "case"]), flags):
    return Verdict(1.0)
  return Verdict(0.0, f"{shorten(found)} does not match {shorten(spec['pattern'])}")


def _same(found: str, expected: str, spec: Mapping[str, Any]) -> bool:
  if "ignore" not in spec:
    return same_answer(found, expected)
  return _without(found, spec["ignore"]) == _without(expected, spec["ignore"])


def _without(text: str, ignore: Any) -> str:
  if "space" in ignore:
    text = "".join(text.split())
  if "punctuation" in ignore:
    text = text.translate(_PUNCTUATION)
  return text.casefold() if "case" in ignore else text
