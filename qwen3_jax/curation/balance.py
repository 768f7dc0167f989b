"""Balance over domains (Qwen3 report, section 4.1), and what is reserved for validation."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Sequence

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rollout.request import derived_seed


def balance(problems: Sequence[Problem], most: float, seed: int) -> list[bool]:
  """Which problems stay so that no domain has more than `most` times the median domain's; 0: all.

  A domain that has too many keeps about as many of each sub-domain, which ones by a hash of id and seed.
  """
  sizes = collections.Counter(problem.domain for problem in problems)
  if not most or not sizes:
    return [True] * len(problems)
  limit = max(1, math.floor(most * statistics.median(sizes.values())))
  kept: set[int] = set()
  for domain, size in sizes.items():
    mine = [i for i, problem in enumerate(problems) if problem.domain == domain]
    kept.update(mine if size <= limit else _spread(problems, mine, limit, seed))
  return [i in kept for i in range(len(problems))]


def reserve(problems: Sequence[Problem], share: float, seed: int) -> list[bool]:
  """Which problems are reserved for validation: this share of each sub-domain, by a hash of id and seed.

  Of a sub-domain with two or more, at least one is, and at least one is not. Equal questions stay together.
  """
  groups: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
  for i, problem in enumerate(problems):
    groups[problem.domain, problem.sub_domain].append(i)
  reserved: set[str] = set()
  for group in groups.values():
    prompts = sorted({problems[i].prompt for i in group}, key=lambda prompt: derived_seed(seed, "validation", prompt))
    count = round(share * len(prompts))
    if share > 0 and len(prompts) > 1:
      count = min(max(count, 1), len(prompts) - 1)
    reserved.update(prompts[:count])
  return [problem.prompt in reserved for problem in problems]


def _spread(problems: Sequence[Problem], mine: list[int], limit: int, seed: int) -> list[int]:
  """`limit` of these, one of each sub-domain in turn."""
  queues: dict[str, collections.deque[int]] = {}
  for i in sorted(mine, key=lambda i: derived_seed(seed, "balance", problems[i].id)):
    queues.setdefault(problems[i].sub_domain, collections.deque()).append(i)
  chosen: list[int] = []
  while len(chosen) < limit:
    for name in sorted(queues):
      if queues[name] and len(chosen) < limit:
        chosen.append(queues[name].popleft())
  return chosen
