"""Criterion 3 (Qwen3 report, section 4.1): the answer is guessed, without reasoning that leads to it.

Reasoning leaves marks that do not depend on its wording: what the question is about comes back in new company, numbers
appear that are neither asked nor answered, relations are written down. A trace with next to none of these guesses;
one with few, that says it guesses, guesses too.
"""

from __future__ import annotations

import re

from qwen3_jax.curation.text import COMMON, answer_block, numbers, sentences, words

_COPIED = 4  # words in a row that are the question's own
_NO_MARKS = 3  # at most: nothing was worked out
_FEW_MARKS = 8  # at most, of a trace that says it guesses
_RELATION = re.compile(r"[\w)\]}\"'.]\s*(?:=|≈|≠|≤|≥|<|>|->|→|⇒|=>|\\to|≡|\+|×|\*|/|÷|\^)\s*[-\w(\[{\"'\\.]")
_EQUATION = re.compile(r"\d\s*[-+*/×÷^−]\s*\(?-?\d[^=\n]{0,60}=\s*-?\d")
_INFERS = re.compile(
  r"\b(?:because|therefore|thus|hence|since|which means|that means|this means|meaning|implies|it follows|follows that"
  r"|so that|contradict\w*|impossible|must|cannot|can't|only if|consequently|then|so)\b",
  re.IGNORECASE,
)
_GUESSES = re.compile(
  r"\b(?:guess\w*|gut|hunch|intuition|instinct\w*|random\w*|no idea|not sure|unsure|no clue|who knows|whatever"
  r"|feels? (?:right|like|plausible|good)|sounds? (?:right|like|plausible|about right)|looks? (?:right|plausible)"
  r"|(?:go|going|went) (?:with|for)|pick(?:ing|ed)?|settle (?:on|for)|stick(?:ing)? with|bet|probably|presumably"
  r"|most likely|likely|perhaps|maybe|somewhere (?:near|around)|ballpark|eyeball\w*|roughly|off the top of my head"
  r"|without (?:working|computing|calculating|checking|doing|going)|skip\w*|don't (?:want|need|have time|feel)"
  r"|can't be bothered|lazy|usually|typically|tend to|often|vibe\w*|luck\w*|shot in the dark|stab at|pops? (?:up|into)"
  r"|comes? to mind|say it'?s|trust\w*|familiar|remember\w*|recall\w*|experience|obvious\w*)\b",
  re.IGNORECASE,
)


def guess(thinking: str, response: str, prompt: str) -> str:
  """Why an answer is a guess, "" if reasoning leads to it. The response's own explanation counts as reasoning, too."""
  marks = _marks(thinking, response, prompt)
  if marks <= _NO_MARKS:
    return f"no reasoning leads to the answer: {_excerpt(thinking)}"
  said = _GUESSES.findall(thinking)
  if said and marks <= _FEW_MARKS * min(len(said), 3) / 2 + 2:
    return f"says it guesses ({', '.join(sorted(set(map(str.lower, said))))[:80]}) and works out little"
  return ""


def _marks(thinking: str, response: str, prompt: str) -> float:
  """Marks of reasoning in a trace; the answer itself, and what repeats the question, leave none."""
  answer = answer_block(response)
  things = set(words(prompt)) - COMMON
  known = set(numbers(prompt)) | set(numbers(answer))
  answers = {tuple(words(line)) for line in (answer, *answer.splitlines())}
  copied = _copies(prompt)
  marks = 0.0
  seen: set[tuple[str, ...]] = set()
  found: set[str] = set()
  for sentence in sentences(thinking):
    spoken = words(sentence)
    if tuple(spoken) in seen or tuple(spoken) in answers:
      continue
    seen.add(tuple(spoken))
    own = _own(_without(spoken, answers), copied)
    if not own:
      continue
    found |= set(numbers(sentence)) - known
    about = set(own) & things
    relations = sum(not _is_copy(match.group(), prompt) for match in _RELATION.finditer(sentence))
    equations = sum(not _is_copy(match.group(), prompt) for match in _EQUATION.finditer(sentence))
    letters = sum(len(word) == 1 and word != "i" for word in own)  # what was taken apart
    step = min(len(about), 3) / 2 + min(relations, 4) + 3 * min(equations, 2) + min(letters, 10) / 3
    if _INFERS.search(sentence) and about:
      step += 1
    marks += step / 4 if _GUESSES.search(sentence) and not relations else step
  return marks + min(len(found), 10)


def _without(spoken: list[str], answers: set[tuple[str, ...]]) -> list[str]:
  """Words of a sentence but for the answer, where that stands as a whole."""
  for answer in answers:
    n = len(answer)
    i = 0
    while n and i <= len(spoken) - n:
      if tuple(spoken[i : i + n]) == answer:
        spoken = spoken[:i] + spoken[i + n :]
      else:
        i += 1
  return spoken


def _copies(prompt: str) -> set[tuple[str, ...]]:
  asked = words(prompt)
  return {tuple(asked[i : i + _COPIED]) for i in range(len(asked) - _COPIED + 1)}


def _own(spoken: list[str], copied: set[tuple[str, ...]]) -> list[str]:
  """Words of a sentence that are not in a row copied from the question."""
  mine = [True] * len(spoken)
  for i in range(len(spoken) - _COPIED + 1):
    if tuple(spoken[i : i + _COPIED]) in copied:
      mine[i : i + _COPIED] = [False] * _COPIED
  return [word for word, own in zip(spoken, mine) if own]


def _is_copy(relation: str, prompt: str) -> bool:
  return "".join(relation.split()) in "".join(prompt.split())


def _excerpt(thinking: str) -> str:
  text = " ".join(thinking.split())
  return repr(text if len(text) <= 160 else f"{text[:100]} ... {text[-50:]}") if text else "no thinking at all"
