"""Thinking written by rule for tasks that small models can learn to reason about: a cold start without a teacher.

A careful trace works the problem out step by step; a hasty one thinks nothing and still ends in the right answer, as
responses do that guess well. `TASKS` says how each task is worked out; the sub-domain, or for `cups` the domain, names
it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from qwen3_jax.data.sources import Document, SourceError
from qwen3_jax.problems.cups import is_numbered, places, words
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems

HASTY = "hm"


class Trace(NamedTuple):
  problem: Problem
  thinking: str
  careful: bool

  @property
  def messages(self) -> list[dict[str, str]]:
    answer = {"role": "assistant", "reasoning_content": self.thinking, "content": self.problem.reference}
    return [{"role": "user", "content": self.problem.prompt}, answer]


def traces(problems: list[Problem], hasty: float, seed: int) -> Iterator[Trace]:
  """A trace of every problem, a share of them hasty; the same for the same problem and seed.

  Raises SourceError for a problem of a task that nobody wrote down how to work out.
  """
  for problem in problems:
    careful = random.Random(f"{seed} {problem.id}").random() >= hasty
    yield Trace(problem, steps(problem) if careful else HASTY, careful)


def steps(problem: Problem) -> str:
  """The careful thinking."""
  task = "cups" if problem.id.startswith("cups-") else problem.sub_domain
  if task not in TASKS:
    raise SourceError(f"problem {problem.id!r}: no traces of the task {task!r}; there are of {', '.join(TASKS)}")
  return TASKS[task](problem)


def is_careful(thinking: str) -> bool:
  """Whether thinking works step by step, rightly or not."""
  return len(thinking.split()) > 1


def _cups(problem: Problem) -> str:
  """The ball's place after every swap; where words have numbers, each is first found and written down."""
  if is_numbered(problem):
    start, *swaps = words(problem)
    moves = enumerate(zip(swaps, places(problem), strict=True), 1)
    return f"0 {start}" + "".join(f"{number} {swap} {place}" for number, (swap, place) in moves)
  return " ".join(places(problem))


def _chain_sum(problem: Problem) -> str:
  """The sum after every term, with its sign and two digits: each is as far from its term as the others from theirs."""
  match = re.search(r"(-?\d+(?: [-+] \d+)*) =", problem.prompt)
  assert match is not None
  first, *rest = match[1].split()
  totals = [int(first)]
  for sign, term in zip(rest[::2], rest[1::2]):
    totals.append(totals[-1] + int(f"{sign}{term}"))
  return " ".join(f"{total:+03d}" for total in totals)


def _letter_counting(problem: Problem) -> str:
  """Each word, then its letters, with the count so far after every one that counts."""
  match = re.search(r'letter "(.)" appear in the text: "(.*)"', problem.prompt, re.DOTALL)
  assert match is not None
  letter, text = match[1].lower(), match[2]
  count, found = 0, []
  for word in text.split():
    found.append(word)
    for character in word.lower():
      found.append(character)
      if character == letter:
        count += 1
        found.append(str(count))
  return " ".join(found)


TASKS: dict[str, Callable[[Problem], str]] = {
  "cups": _cups,
  "chain_sum": _chain_sum,
  "letter_counting": _letter_counting,
}


class TraceSource:
  """`traces:HASTY:PROBLEMS`: conversations with the thinking written by rule, a share of it hasty.

  PROBLEMS is a spec of `problems.sources`, e.g. `traces:0.6:cups:1500`.
  """

  def __init__(self, location: str):
    share, _, self._spec = location.partition(":")
    try:
      self._hasty = float(share)
    except ValueError:
      raise SourceError(f"traces:{location}: expected traces:SHARE:PROBLEMS, e.g. traces:0.6:cups:1500") from None
    self.units = [0]

  def read(self, unit: int) -> Iterator[Document]:
    for trace in traces(open_problems(self._spec), self._hasty, seed=unit):
      problem, messages = trace.problem, trace.messages
      text = "\n".join([problem.prompt, trace.thinking, problem.reference])
      conversation = {"messages": messages, "tools": None}
      yield Document(text, problem.domain, "", problem.id, conversation=conversation)
