"""Criterion 2 (Qwen3 report, section 4.1): the text repeats itself substantially.

To come back to a step once, to check it, is no repetition; to say it a third time is. Code, formulas and tables repeat
by nature: only words count, and what the question itself says is not counted.
"""

from __future__ import annotations

import collections
import itertools

from qwen3_jax.curation.text import COMMON, prose, sentences, tokens, words

_SHORTEST = 4  # words of a sentence that can be a repetition
_SIMILAR = 0.75  # Jaccard of the word pairs of two sentences that say the same
_SHARE = 0.15  # of the words that say for the third time, or later, what was said
_FEWEST = 20  # such words
_BLOCK = 45  # words in a row, said twice
_COPY, _DIFFERENT = 30, 10  # tokens in a row, code and tables too, said three times; how many different ones at least
_LONGEST_PERIOD = 40  # words of a loop
_LOOP = 24  # words that a loop lasts, and at least four rounds


def repetition(text: str, prompt: str = "") -> str:
  """How a text repeats itself, "" if it does not substantially. prompt: what may be quoted as often as one likes."""
  return _in_words(text, prompt) or _copies(text)


def _in_words(text: str, prompt: str) -> str:
  text = prose(text)
  all_words = words(text)
  return _loop(all_words) or _said_again(text, len(all_words), prompt) or _block(all_words, words(prompt))


def _is_word(word: str) -> bool:
  return (word.isalpha() and len(word) > 1) or ord(word[0]) > 0x0E00


def _loop(all_words: list[str]) -> str:
  """The same words at once again and again, without so much as a full stop."""
  n = len(all_words)
  for period in range(1, min(_LONGEST_PERIOD, n // 4) + 1):
    needed = max(_LOOP, 4 * period) - period
    run = 0
    for i in range(period, n):
      run = run + 1 if all_words[i] == all_words[i - period] else 0
      if run >= needed:
        cycle = all_words[i - period + 1 : i + 1]
        if sum(map(_is_word, cycle)) * 2 > period:
          return f"a loop: {' '.join(cycle)!r} over and over"
  return ""


def _said_again(text: str, total: int, prompt: str) -> str:
  """Sentences that were said twice already, in nearly these words."""
  asked = {tuple(words(sentence)) for sentence in sentences(prompt)}
  things = set(words(prompt)) - COMMON
  groups: list[set[tuple[str, str]]] = []
  said: list[int] = []
  where: dict[tuple[str, str], list[int]] = {}
  again = 0
  example = ""
  most = 0
  for sentence in sentences(text):
    spoken = words(sentence)
    if len(spoken) < _SHORTEST or sum(map(_is_word, spoken)) * 2 < len(spoken) or tuple(spoken) in asked:
      continue
    pairs = set(itertools.pairwise(spoken))
    shared: collections.Counter[int] = collections.Counter()
    for pair in pairs:
      shared.update(where.get(pair, ()))
    group = next(
      (
        g
        for g, count in shared.most_common(3)
        if count / len(pairs | groups[g]) >= _SIMILAR and _same(pairs, groups[g], things)
      ),
      None,
    )
    if group is None:
      groups.append(pairs)
      said.append(1)
      for pair in pairs:
        where.setdefault(pair, []).append(len(groups) - 1)
      continue
    said[group] += 1
    if said[group] > 2:
      again += len(spoken)
      if said[group] > most:
        most, example = said[group], sentence
  if again >= _FEWEST and again >= _SHARE * total:
    return f"{again} of {total} words were said twice before, e.g. {most} times {example[:120]!r}"
  return ""


def _same(one: set[tuple[str, str]], other: set[tuple[str, str]], things: set[str]) -> bool:
  """Whether two similar sentences speak of the same: numbers and things of the question that differ make two steps."""
  return not any(word in things or any(c.isdigit() for c in word) for pair in one ^ other for word in pair)


def _block(all_words: list[str], prompt: list[str]) -> str:
  """A long passage, word for word, a second time."""
  asked = {tuple(prompt[i : i + 8]) for i in range(len(prompt) - 7)}
  seen: set[tuple[str, ...]] = set()
  i = 0
  recent: collections.deque[tuple[str, ...]] = collections.deque()
  for i in range(len(all_words) - _BLOCK + 1):
    passage = tuple(all_words[i : i + _BLOCK])
    if passage in seen and sum(map(_is_word, passage)) * 2 > _BLOCK:
      quoted = sum(passage[j : j + 8] in asked for j in range(_BLOCK - 7))
      if quoted * 2 < _BLOCK - 7:
        return f"{_BLOCK} words or more once again: {' '.join(passage[:20])!r} ..."
    recent.append(passage)
    if len(recent) > _BLOCK:  # a passage that overlaps itself is a loop, or a table
      seen.add(recent.popleft())
  return ""


def _copies(text: str) -> str:
  """A passage of anything, word for word, for the third time or later: a good part of the text."""
  all_tokens = tokens(text)
  last: dict[tuple[str, ...], int] = {}
  times: collections.Counter[tuple[str, ...]] = collections.Counter()
  copied = bytearray(len(all_tokens))
  example: tuple[str, ...] = ()
  for i in range(len(all_tokens) - _COPY + 1):
    passage = tuple(all_tokens[i : i + _COPY])
    if passage in last and i - last[passage] < _COPY:
      continue
    last[passage] = i
    times[passage] += 1
    if times[passage] > 2 and len(set(passage)) >= _DIFFERENT:
      copied[i : i + _COPY] = b"\1" * _COPY
      example = example or passage
  if sum(copied) >= _SHARE * len(all_tokens) and example:
    return (
      f"{sum(copied)} of {len(all_tokens)} tokens are copies of what stands there twice: {' '.join(example[:20])!r} ..."
    )
  return ""
