"""Criterion 6 (Qwen3 report, section 4.1): too similar to an item of the validation set.

Questions made from one template share most of their words; what makes two of them the same question is what is left
without the template: its numbers, names and rare words, in their order. So a word that a fifth of a sub-domain's
questions have, or a twentieth of all, does not count.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from qwen3_jax.curation.text import tokens
from qwen3_jax.problems.problem import Problem

_OF_SUB_DOMAIN, _FEWEST = (
  0.2,
  5,
)  # share of a sub-domain's questions that have a template's word; questions to tell from
_OF_ALL = 0.05
_OVERLAP = 0.6  # share of an item's n-grams that a text contains
_JACCARD = 0.6  # of two questions' words and word pairs
_FEW = 5  # n-grams of an item that another question can contain by more than chance
_SHORTEST = 6  # n-grams of an item that a trace can contain by more than chance
_PERMUTATIONS = 96


class ValidationIndex:
  """Finds what is too similar to validation problems.

  Args:
    validation: what must not be learnt.
    corpus: all questions, which tell what a template is; those of validation among them or not.
  """

  def __init__(self, validation: Sequence[Problem], corpus: Iterable[Problem]):
    self._templates = _Templates([*corpus, *validation])
    self._contents = {problem.id: self._templates.content(problem) for problem in validation}
    self._grams = {id: _grams(content) for id, content in self._contents.items()}
    self._of_sub_domain: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)  # content in one, id
    for problem in validation:
      if self._contents[problem.id]:
        self._of_sub_domain[problem.sub_domain].append((_joined(self._contents[problem.id]), problem.id))
    self._where: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for id, grams in self._grams.items():
      for gram in grams:
        self._where[gram].append(id)

  def similarity(self, problem: Problem) -> str:
    """Which validation item a question is too similar to; "" if none.

    Three ways: an item of its sub-domain has this content, whatever stands around it; by n-gram overlap, most of an
    item's content is in this one's; by Jaccard similarity of the contents, candidates for which MinHash finds.
    """
    content = self._templates.content(problem)
    here = _joined(content)
    same = next((id for other, id in self._of_sub_domain[problem.sub_domain] if other in here), None)
    if same is not None:
      return f"the same question as validation item {same}"
    return self._near(content) or self._contained(content, _FEW)

  def quoted(self, text: str, problem: Problem) -> str:
    """Which validation item a trace about a problem contains, by n-gram overlap; "" if none."""
    own = _grams(self._templates.content(problem))
    return self._contained(self._templates.content_of(text, problem.sub_domain), _SHORTEST, own)

  def _contained(self, content: list[str], fewest: int, own: Collection[tuple[str, ...]] = ()) -> str:
    """own: n-grams that do not count, since the question has them anyway."""
    shared: collections.Counter[str] = collections.Counter()
    for gram in _grams(content):
      shared.update(self._where.get(gram, ()))
    for id, count in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
      grams = self._grams[id]
      if len(grams) >= fewest and count >= _OVERLAP * len(grams) and count > len(grams.intersection(own)):
        return f"contains {count} of {len(grams)} n-grams of validation item {id}"
    return ""

  def _near(self, content: list[str]) -> str:
    features = _features(content)
    if len(features) < 3:
      return ""
    for id in sorted(self._lsh.query(_minhash(features))):
      other = _features(self._contents[id])
      jaccard = len(features & other) / len(features | other)
      if jaccard >= _JACCARD:
        return f"Jaccard similarity {jaccard:.2f} to validation item {id}"
    return ""

  @functools.cached_property
  def _lsh(self) -> Any:
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=_JACCARD - 0.1, num_perm=_PERMUTATIONS)  # misses few; the true similarity decides
    for id, content in self._contents.items():
      features = _features(content)
      if len(features) >= 3:
        index.insert(id, _minhash(features))
    return index


class _Templates:
  """Knows which words are of a template."""

  def __init__(self, corpus: Iterable[Problem]):
    problems = {problem.id: problem for problem in corpus}
    self._total = len(problems)
    self._in_all: collections.Counter[str] = collections.Counter()
    self._sizes: collections.Counter[str] = collections.Counter()
    self._in_sub_domain: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for problem in problems.values():
      found = set(_merged(problem.prompt))
      self._in_all.update(found)
      self._in_sub_domain[problem.sub_domain].update(found)
      self._sizes[problem.sub_domain] += 1

  def content(self, problem: Problem) -> list[str]:
    """A question's words that are not of a template, in their order."""
    return self.content_of(problem.prompt, problem.sub_domain)

  def content_of(self, text: str, sub_domain: str) -> list[str]:
    own, size = self._in_sub_domain[sub_domain], self._sizes[sub_domain]
    fewest = max(3.0, _OF_SUB_DOMAIN * size) if size >= _FEWEST else float("inf")
    in_all = max(3.0, _OF_ALL * self._total)
    return [
      word
      for word in _merged(text)
      if any(character.isalnum() for character in word)
      and (any(character.isdigit() for character in word) or self._in_all[word] <= in_all)
      and own[word] <= fewest
    ]


def _merged(text: str) -> list[str]:
  """Tokens; single characters in a row are one: of a grid a line, of a sum all of it."""
  merged: list[str] = []
  for line in text.splitlines():
    run: list[str] = []
    for token in [*tokens(line), ""]:
      if len(token) == 1:
        run.append(token)
        continue
      if run:
        merged.append("".join(run))
        run = []
      if token:
        merged.append(token)
  return merged


def _joined(content: list[str]) -> str:
  return "\n".join(["", *content, ""])


def _grams(content: list[str]) -> set[tuple[str, ...]]:
  return set(itertools.pairwise(content)) or {tuple(content)}


def _features(content: list[str]) -> set[str]:
  return {*content, *(f"{a} {b}" for a, b in itertools.pairwise(content))}


def _minhash(features: set[str]) -> Any:
  from datasketch import MinHash

  made = MinHash(num_perm=_PERMUTATIONS, seed=1)
  made.update_batch([feature.encode() for feature in sorted(features)])
  return made
