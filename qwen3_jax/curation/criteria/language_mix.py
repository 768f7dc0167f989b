"""Criterion 5 (Qwen3 report, section 4.1), first half: languages are mixed.

A trace may use the question's language and those that it names; thinking may be in English whatever the question's
language is. What stands in quotes, brackets, code or the question is nobody's mixing.
"""

from __future__ import annotations

import collections
import functools
import re

from qwen3_jax.curation.languages import SCRIPTS, close, named, ranked
from qwen3_jax.curation.text import prose, script, sentences, words

_MARKED = re.compile(r"[^\W\d_]+")
_FEWEST = 4  # words of a sentence whose language can be told
_SURE = 0.8  # probability of a sentence's language
_EXCLUDED = 0.02  # probability that it is one of the expected, at most
_ONE, _MORE = 7, 9  # foreign words in one sentence, or in several, that are mixing
_WINDOW = 7  # words in a row within a sentence
_ALWAYS = {"zxx", "la"}  # no language; terms and names
_LETTERS = {"HAN": 2, "KANA": 2, "HANGUL": 2}  # of a foreign script that are mixing; of others 4
_RUN = 5  # Latin words in a row in a text of another script: a sentence, no names


def language_mix(thinking: str, response: str, prompt: str) -> str:
  """Where a trace leaves its language, "" if nowhere."""
  asked = set(words(prompt))
  for part, text in (("thinking", thinking), ("response", response)):
    found = _foreign_script(text, prompt) or _foreign_sentences(text, prompt, asked, may_be_english=part == "thinking")
    if found:
      return f"{part}: {found}"
  return ""


def _counts(text: str) -> collections.Counter[str]:
  """Letters by script; Chinese characters are Japanese ones where a fifth of as many are kana."""
  counts = collections.Counter(
    script(character)
    for word in _MARKED.findall(text)
    if len(word) > 1 or script(word) in _LETTERS
    for character in word
  )  # alone, a letter of an alphabet is a symbol
  counts.pop("", None)
  if counts["KANA"] * 5 >= counts["HAN"] > 0:
    counts["KANA"] += counts.pop("HAN")
  return +counts


def _foreign_script(text: str, prompt: str) -> str:
  spoken = prose(text, quotes=False)
  counts = _counts(spoken)
  prompt_scripts, tongues = _counts(prompt), named(prompt)
  expected = set(prompt_scripts) | {name for name, languages in SCRIPTS.items() if languages & tongues}
  if "KANA" in expected:
    expected.add("HAN")
  if not counts:
    return ""
  main = counts.most_common(1)[0][0]
  if main not in expected and main != "LATIN" and prompt_scripts:
    return f"written in {main.title()} letters, the question is not"
  if main != "LATIN":
    run = re.search(rf"(?:\b[A-Za-z]{{2,}}\b[ ,;]+){{{_RUN - 1},}}\b[A-Za-z]{{2,}}\b", spoken)
    if run and "".join(words(run.group())) not in "".join(words(prompt)) and _is_language(run.group()):
      return f"{run.group()[:80]!r} in a text of {main.title()} letters"
  foreign: list[str] = []
  for word in _MARKED.findall(spoken):
    letters = [character for character in word if script(character) not in (main, "", *expected, "LATIN")]
    if main == "KANA":
      letters = [character for character in letters if script(character) != "HAN"]
    if letters and (len(word) > 1 or script(letters[0]) in _LETTERS):
      foreign.append(word)
  by_script = collections.Counter(script(character) for word in foreign for character in word)
  for name, count in by_script.items():
    if name not in ("", "LATIN", main) and name not in expected and count >= _LETTERS.get(name, 4):
      return f"{', '.join(foreign[:5])!r} in a text of {main.title()} letters"
  return ""


def _is_language(run: str) -> bool:
  return ranked(run)[0][1] >= _SURE


def _foreign_sentences(text: str, prompt: str, asked: set[str], may_be_english: bool) -> str:
  expected = named(prompt) | _languages(prompt)
  if may_be_english or not expected:
    expected.add("en")
  allowed = set().union(_ALWAYS, *(close(language) for language in expected))
  found: collections.Counter[str] = collections.Counter()
  count: collections.Counter[str] = collections.Counter()
  examples: dict[str, str] = {}
  for sentence in sentences(prose(text, quotes=False)):
    spoken = [word for word in words(sentence) if word.isalpha()]
    own = [word for word in spoken if word not in asked]
    if len(own) < _FEWEST or len(own) * 2 < len(spoken):
      continue
    for language, many, piece in _told(sentence, spoken, allowed):
      found[language] += many
      count[language] += 1
      examples.setdefault(language, piece)
  for language, many in found.most_common():
    if many >= (_ONE if count[language] == 1 else _MORE):
      return f"{language} besides {', '.join(sorted(expected))}: {examples[language][:120]!r}"
  return ""


def _told(sentence: str, spoken: list[str], allowed: set[str]) -> list[tuple[str, int, str]]:
  """(language, words, text) of a sentence that is foreign, or of its foreign stretches."""
  foreign = _foreign(sentence.lower() if sentence.isupper() else sentence, allowed)
  if foreign:
    return [(foreign, len(spoken), sentence)]
  stretches = []
  for i in range(0, len(spoken) - _WINDOW, 3):
    piece = " ".join(spoken[i : i + _WINDOW])
    foreign = _foreign(piece, allowed)
    if foreign:
      stretches.append((foreign, _WINDOW // 2 + 1, piece))
  return stretches


def _foreign(text: str, allowed: set[str]) -> str:
  """The language of a text that is surely none of those allowed, else ""."""
  told = ranked(text)
  language, probability = told[0]
  if language in allowed or probability < _SURE:
    return ""
  return language if sum(p for name, p in told if name in allowed) <= _EXCLUDED else ""


@functools.lru_cache(maxsize=1024)
def _languages(prompt: str) -> frozenset[str]:
  """Languages that a question is written in: one that is told from all of it, and those of its sentences."""
  found = set()
  for piece in (prompt, *sentences(prose(prompt))):
    if len(words(piece)) >= _FEWEST:
      language, probability = ranked(piece)[0]
      if probability >= _SURE:
        found.add(language)
  return frozenset(found)
