"""Criterion 4 (Qwen3 report, section 4.1): thinking and summary disagree."""

from __future__ import annotations

import collections
import difflib
import re

from qwen3_jax.curation.text import answer_block, numbers, sentences, words
from qwen3_jax.evaluation.answers import extract_answer, normalise, same_answer

_TAIL = 400  # characters at the end of the thinking, where its conclusion stands
_LAST = 3  # sentences that conclude
_SHORT = 60  # characters: of a sentence without end, what concludes
_BLOCK = 9  # words from which on an answer is compared as a whole
_NEARLY = 0.8  # likeness of two such answers that are meant to be the same
_NEW = 0.6  # share of a summary's numbers that neither question nor thinking know
_FEWEST_NEW = 3
_CONCLUDES = re.compile(
  r"\b(?:answer|final|result|total|conclu\w+|therefore|thus|hence|altogether|in all|so (?:it'?s|it is|that)|leaves"
  r"|makes|must be)\b",
  re.IGNORECASE,
)
_SAYS = re.compile(r"\\boxed|\banswer\b[*_]*(?:\s+\w+){0,3}?\s*(?:\b(?:is|be)\b|[:=])", re.IGNORECASE)
_WORDS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
  " eighteen nineteen twenty"
).split()
_YES = {"yes", "true", "correct", "valid", "follows", "1"}
_NO = {"no", "false", "incorrect", "invalid", "0"}


def inconsistency(thinking: str, response: str, prompt: str = "") -> str:
  """How the summary departs from the thinking, "" if it does not. No thinking disagrees with nothing."""
  if not thinking.strip() or not response.strip():
    return ""
  answer = answer_block(response)
  if len(words(answer)) >= _BLOCK:
    other = _other_block(words(thinking), words(answer))
  else:
    answer = extract_answer(response)
    other = _other_conclusion(thinking, answer, prompt) if answer else ""
  if other:
    return other
  known = set(numbers(prompt)) | set(numbers(thinking)) | {str(i) for i in range(11)}
  own = numbers(response)
  new = [number for number in own if number not in known]
  if len(set(new)) >= _FEWEST_NEW and len(new) >= _NEW * len(own):
    return f"the summary reckons with numbers that the thinking does not have: {', '.join(new[:6])}"
  return ""


def _other_block(thinking: list[str], answer: list[str]) -> str:
  """Of a long answer, a grid or a list: whether the thinking has it, or ends with another in its place."""
  n = len(answer)
  said = " ".join(answer)
  at = f" {' '.join(thinking)} ".rfind(f" {said} ")
  if at >= 0 and len(" ".join(thinking)) - at < 3 * len(said):
    return ""
  end = thinking[-n - n // 4 :]
  likeness, start = max(
    (difflib.SequenceMatcher(None, answer, end[i : i + n], False).ratio(), i) for i in range(len(end) - n + 1 or 1)
  )
  if likeness >= _NEARLY or sorted(end[-n:]) == sorted(answer):
    return f"the thinking ends with {' '.join(end[start : start + n])[:80]!r}, the response with {said[:80]!r}"
  if at >= 0:
    return ""
  missing = set(answer) - set(thinking)
  if len(missing) > len(set(answer)) / 2:
    return f"the thinking has no {min(missing)!r} of the response's answer"
  return ""


def _other_conclusion(thinking: str, answer: str, prompt: str) -> str:
  said = _stated(thinking)
  if said and (_equal(said, answer, prompt) or _names(said, answer, prompt)):
    return ""
  if said and _comparable(said, answer, prompt):
    return f"the thinking ends with {said[:80]!r}, the response with {answer[:80]!r}"
  ending = sentences(thinking[-_TAIL:])
  concluding = [s for s in ending[:-_LAST] if _CONCLUDES.search(s)] if numbers(answer) else ending[:-_LAST]
  last = [s if len(ending) > 1 and len(s) < 2 * _SHORT else s[-max(_SHORT, 2 * len(answer)) :] for s in ending[-_LAST:]]
  if _names("\n".join([*concluding, *last]), answer, prompt):
    return ""
  return (
    f"the thinking's end does not know the response's answer {answer[:80]!r}: {' '.join(thinking[-120:].split())!r}"
  )


def _stated(thinking: str) -> str:
  """What the thinking says its answer is, in its last sentences; "" if in no such words."""
  for sentence in reversed(sentences(thinking)[-4:]):
    if _SAYS.search(sentence):
      return answer_block(sentence).rstrip(".!")
  return ""


def _comparable(said: str, answer: str, prompt: str) -> bool:
  """Whether both are of a kind, so that to be different is to disagree: two numbers, or two of the same few words."""
  one, other = normalise(said), normalise(answer)
  if bool(numbers(one)) != bool(numbers(other)):
    return one in _YES | _NO and other in _YES | _NO
  return len(words(one)) < 2 * _BLOCK and not _names(said, answer, prompt) and not _names(answer, said, prompt)


def _equal(one: str, other: str, prompt: str) -> bool:
  if same_answer(one, other):
    return True
  a, b = " ".join(words(one)), " ".join(words(other))
  if a == b and numbers(one) == numbers(other):
    return True
  return any({a, b} <= kind for kind in (_YES, _NO)) or _options(prompt).get(a) == b or _options(prompt).get(b) == a


def _names(text: str, answer: str, prompt: str) -> bool:
  """Whether a text has the answer: in its words, as a number in other spelling, or as the choice it stands for."""
  spoken = words(text)
  for spelling in (answer, _options(prompt).get(" ".join(words(answer)), "")):
    wanted = words(spelling)
    if wanted and any(spoken[i : i + len(wanted)] == wanted for i in range(len(spoken) - len(wanted) + 1)):
      return _signs_agree(text, answer)
  if "".join(words(answer)) and len("".join(words(answer))) > 3 and "".join(words(answer)) in "".join(spoken):
    return True
  figures = numbers(answer)
  if figures:
    there = collections.Counter([*numbers(text), *(str(_WORDS.index(word)) for word in spoken if word in _WORDS)])
    return collections.Counter(figures) <= there and _signs_agree(text, answer)
  kind = next((kind for kind in (_YES, _NO) if " ".join(words(answer)) in kind), set())
  return bool(kind & set(spoken))


def _signs_agree(text: str, answer: str) -> bool:
  """Of a single number: whether the text has it with the answer's sign, or without a sign that could be an operator."""
  match = re.fullmatch(r"[-−]?\s*([\d.,]+)", normalise(answer))
  if not match:
    return True
  negative = normalise(answer).startswith("-")
  minus = re.compile(rf"(?<![\w.])([-−]?)\s?{re.escape(match[1])}(?![\w])")
  signs = {bool(found[1]) for found in minus.finditer(text.replace(",", ""))}
  return not signs or negative in signs


def _options(prompt: str) -> dict[str, str]:
  """Letters of choices in the question -> what they stand for."""
  found = re.findall(r"^\s*\(?([A-Ja-j])[).:]\s+(.+?)\s*$", prompt, re.MULTILINE)
  return {letter.lower(): " ".join(words(text)) for letter, text in found}
