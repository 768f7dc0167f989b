"""Queries for reinforcement learning: unused before, learnable, challenging, of many sub-domains.

Qwen3 report, section 4.2: the 3,995 query-verifier pairs of reasoning RL were not used in the cold start, are learnable
for the cold-start model, as challenging as possible, and cover a broad range of sub-domains. It gives no numbers; here:

- Unused: neither the id nor the prompt (but for white space) is one of the cold start's; see `read_used`.
- Learnable: the Clopper-Pearson interval of the model's pass rate lies strictly between `least` and `most`. With 0 and
  1 that says, at any level, that some answer was right and some wrong: then no sampling error can make the rate 0 or 1.
  With narrower bounds a rate is left out unless the answers show, each time with an error of (1 - level) / 2 at most,
  that it is above `least` and below `most`. Where answers can be guessed, `least` is the rate of guessing: without it
  the lowest rates are those of problems that the model cannot solve, and training on them rewards lucky guesses.
- Challenging: within a sub-domain the lowest pass rate comes first.
- Broad: sub-domains have equal quotas; what one cannot fill is shared equally by the others. What equal shares leave
  over goes to the sub-domains whose next problem has the lowest pass rate.

Equal pass rates are ordered by a hash of seed and id, so the choice depends on the set of problems, not their order.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import heapq
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.curation.pass_rates import PassRate
from qwen3_jax.evaluation.records import read_records
from qwen3_jax.problems.problem import Problem

REPORT_COUNT = 3995  # query-verifier pairs of the report
SubDomain = tuple[str, str]  # domain, sub-domain


@dataclasses.dataclass(frozen=True)
class Rule:
  """What is chosen, see above. Raises ValueError for what cannot be."""

  count: int = REPORT_COUNT
  level: float = 0.9  # of the interval
  least: float = 0.0  # pass rate
  most: float = 1.0  # likewise
  seed: int = 0

  def __post_init__(self):
    if self.count < 1:
      raise ValueError(f"count={self.count}, expected at least 1")
    if not 0 < self.level < 1:
      raise ValueError(f"level={self.level}, expected a number between 0 and 1, e.g. 0.9")
    if not 0 <= self.least < self.most <= 1:
      raise ValueError(f"least={self.least}, most={self.most}: expected pass rates, 0 <= least < most <= 1")

  def why_not(self, rate: PassRate) -> str:
    """Why a problem is not learnable, "" if it is."""
    if not rate.answers:
      return "never judged"
    if rate.right == 0:
      return "never right"
    if rate.right == rate.answers:
      return "always right"
    low, high = rate.interval(self.level)
    if low <= self.least:
      return f"may be right as seldom as {self.least:g}"
    return f"may be right as often as {self.most:g}" if high >= self.most else ""


@dataclasses.dataclass(frozen=True)
class Used:
  """What a model was trained on before."""

  ids: frozenset[str] = frozenset()
  prompts: frozenset[str] = frozenset()  # as `_plain` has them

  def __contains__(self, problem: Problem) -> bool:
    return problem.id in self.ids or _plain(problem.prompt) in self.prompts


_NOTHING = Used()


def read_used(paths: Iterable[Path]) -> Used:
  """Ids and prompts of JSONL files of problems or conversations: `id`, `prompt`, and user turns of `messages`.

  Raises ValueError naming file and line for a record with none of them, OSError for a file that cannot be read.
  """
  ids: set[str] = set()
  prompts: set[str] = set()

  def add(record: dict[str, Any]) -> None:
    turns = record.get("messages") or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
      raise ValueError("messages: expected a list of objects")
    asked = [record.get("prompt"), *(turn.get("content") for turn in turns if turn.get("role") == "user")]
    found = [_plain(text) for text in asked if isinstance(text, str)]
    id = record.get("id")
    if not found and not isinstance(id, str):
      raise ValueError(f"expected id, prompt or messages; it has {', '.join(record) or 'none'}")
    prompts.update(found)
    if isinstance(id, str):
      ids.add(id)

  for path in paths:
    read_records(path, add)
  return Used(frozenset(ids), frozenset(prompts))


def candidates_of(
  problems: Iterable[Problem], used: Used = _NOTHING, seed: int = 0
) -> tuple[list[Problem], dict[str, int]]:
  """Problems that were not used, one for each prompt, by the hash of seed and id; how many were dropped, by reason.

  Raises ValueError for two different problems of the same id.
  """
  by_id: dict[str, Problem] = {}
  dropped = {"used before": 0, "repeated": 0}
  for problem in problems:
    known = by_id.setdefault(problem.id, problem)
    if known != problem:
      raise ValueError(f"id {problem.id!r} is that of two different problems")
    dropped["repeated"] += known is not problem
  by_prompt: dict[str, Problem] = {}
  for problem in sorted(by_id.values(), key=lambda problem: _hash(seed, problem)):
    if problem in used:
      dropped["used before"] += 1
    elif by_prompt.setdefault(_plain(problem.prompt), problem) is not problem:
      dropped["repeated"] += 1
  return list(by_prompt.values()), dropped


@dataclasses.dataclass(frozen=True)
class Selection:
  """What was chosen among candidates, and as many of them at random, for comparison."""

  chosen: list[Problem]  # the lowest pass rates first
  at_random: list[Problem]  # among all candidates, learnable or not
  dropped: dict[str, int]  # reason -> candidates


def select(candidates: Sequence[Problem], rates: Mapping[str, PassRate], rule: Rule) -> Selection:
  """At most `rule.count` learnable problems, see above.

  Args:
    candidates: with different ids, e.g. of `candidates_of`.
    rates: by id.

  Raises ValueError for a candidate without a pass rate, or an id that occurs twice.
  """
  hashes = {problem.id: _hash(rule.seed, problem) for problem in candidates}
  if len(hashes) < len(candidates):
    raise ValueError(f"candidates: {len(candidates)} problems have only {len(hashes)} ids")
  if missing := sorted(hashes.keys() - rates.keys()):
    raise ValueError(f"rates: none of {len(missing)} candidates, e.g. of {missing[0]!r}")
  order = lambda problem: (rates[problem.id].rate, hashes[problem.id])
  dropped: collections.Counter[str] = collections.Counter()
  learnable: dict[SubDomain, list[Problem]] = {}
  for problem in sorted(candidates, key=order):
    if reason := rule.why_not(rates[problem.id]):
      dropped[reason] += 1
    else:
      learnable.setdefault(_sub_domain(problem), []).append(problem)
  # Equal quotas: every sub-domain's first problem, then every second, and so on.
  places = [(place, *order(problem), problem) for group in learnable.values() for place, problem in enumerate(group)]
  chosen = [problem for *_, problem in heapq.nsmallest(rule.count, places, key=lambda place: place[:3])]
  dropped["above the quota"] = len(places) - len(chosen)
  drawn = sorted(candidates, key=lambda problem: _hash(f"at random {rule.seed}", problem))[: len(chosen)]
  return Selection(sorted(chosen, key=order), drawn, dict(sorted(dropped.items())))


def describe(problems: Sequence[Problem], rates: Mapping[str, PassRate]) -> dict[str, Any]:
  """Of a set of problems: `problems`, `pass_rate` (mean of the estimates), `sub_domains` (name -> problems) and
  `entropy` of their shares in nats, which is ln(sub-domains) where they are equally large.
  """
  counts = collections.Counter("/".join(filter(None, _sub_domain(problem))) for problem in problems)
  shares = [count / len(problems) for count in counts.values()]
  return {
    "problems": len(problems),
    "pass_rate": statistics.fmean(rates[problem.id].rate for problem in problems) if problems else 0.0,
    "entropy": -sum(share * math.log(share) for share in shares) + 0.0,
    "sub_domains": dict(sorted(counts.items())),
  }


def _sub_domain(problem: Problem) -> SubDomain:
  return problem.domain, problem.sub_domain


def _plain(prompt: str) -> str:
  """Equal for prompts that differ in white space only."""
  return " ".join(prompt.split())


def _hash(seed: object, problem: Problem) -> str:
  return hashlib.sha256(f"{seed}/{problem.id}".encode(errors="surrogatepass")).hexdigest()
