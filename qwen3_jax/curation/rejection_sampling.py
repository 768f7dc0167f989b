"""Thinking samples by rejection sampling of the model itself (Qwen3 report, section 4.3)."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from qwen3_jax.curation.answer_filters import answer_text, parse
from qwen3_jax.curation.fusion_samples import Sample, Turn, shortened
from qwen3_jax.curation.plans import by_id, difference, digest
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.asking import Answer

# What becomes of an answer, in the order in which it is found out.
Outcome = Literal[
  "failed",  # the environment, or the model's numbers
  "truncated",
  "halted",  # by a thinking budget: the model did not end its thinking itself
  "broken format",  # not exactly one closed think block with something in it, and a response
  "wrong",  # says the verifier
  "duplicate",  # of a kept answer to the same problem
  "surplus",  # the problem has as many as wanted
  "kept",
]


class Asks(Protocol):
  """What asks a model, as `rl.asking.Asker` does."""

  @property
  def tokenizer(self) -> Tokenizer: ...

  @property
  def lock(self) -> contextlib.AbstractContextManager[Any]: ...

  def ask(
    self, params: Parameters | None, problems: Sequence[Problem], samples: int, seed: int
  ) -> list[list[Answer]]: ...


@dataclasses.dataclass
class RejectionSampled:
  """The samples, in the order of the problems, and what became of all answers."""

  samples: list[Sample] = dataclasses.field(default_factory=list)
  problems: int = 0
  without: int = 0  # problems none of whose answers is kept
  outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # of answers
  examples: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)  # by outcome

  def as_dict(self) -> dict[str, Any]:
    return {
      "problems": self.problems,
      "problems_without": self.without,
      "answers": self.outcomes.total(),
      "outcomes": dict(sorted(self.outcomes.items())),
      "examples": dict(sorted(self.examples.items())),
    }


_EXAMPLES = 5  # of each outcome


def rejection_sample(
  asker: Asks,
  problems: Sequence[Problem],
  samples: int,
  most: int,
  path: Path,
  seed: int,
  *,
  params: Parameters | None = None,
  described: Mapping[str, Any] | None = None,
  at_a_time: int = 64,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RejectionSampled:
  """Asks every problem `samples` times, and keeps of each the first `most` answers that are right and of good form.

  `path` is JSONL: what the answers depend on in the first line, then a line for each problem, in their order. A run
  that was killed goes on after its last whole block of `at_a_time` problems, and ends with the same file.

  Args:
    params: of the model; None: those that the engine has. Given, no rounding depends on where a run was killed.
    described: JSON-able, what else the answers depend on: the checkpoint, its dtype, sampling.
    on_progress: called with (problems done, problems in all).

  Raises ValueError for ids that occur twice and for a file of something else, OSError if it cannot be written.
  """
  if min(samples, most, at_a_time) < 1:
    raise ValueError(f"samples={samples}, most={most}, at_a_time={at_a_time}: expected at least 1")
  by_id(problems)
  header = {
    **(described or {}),
    "samples": samples,
    "most": most,
    "seed": seed,
    "at_a_time": at_a_time,
    "problems": digest([dataclasses.asdict(problem) for problem in problems]),
  }
  log = _Log(path, header, at_a_time, len(problems))
  on_progress(len(log.rows), len(problems))
  while len(log.rows) < len(problems):
    block = problems[len(log.rows) : len(log.rows) + at_a_time]
    with asker.lock:
      groups = asker.ask(params, block, samples, seed)
    log.add([_row(asker.tokenizer, problem, group, most) for problem, group in zip(block, groups, strict=True)])
    on_progress(len(log.rows), len(problems))
  return _collected(problems, log.rows)


class _Log:
  """What is known of each problem, on disk: a header and rows, of which only whole blocks count."""

  def __init__(self, path: Path, header: Mapping[str, Any], at_a_time: int, total: int):
    self._path = path
    self.rows: list[dict[str, Any]] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
      lines.pop()
    if not lines:
      path.write_bytes(b"")
      self._append([dict(header)])
      return
    self._check(lines[0], header)
    whole = len(lines) - 1
    if whole < total:
      whole -= whole % at_a_time
    try:
      self.rows = [json.loads(line) for line in lines[1 : whole + 1]]
    except ValueError as error:
      raise ValueError(f"{path}: damaged ({error}); remove it to ask anew") from None
    os.truncate(path, sum(map(len, lines[: whole + 1])))

  def add(self, rows: Sequence[dict[str, Any]]) -> None:
    """On disk when this returns."""
    self._append(rows)
    self.rows += rows

  def _append(self, rows: Sequence[dict[str, Any]]) -> None:
    with open(self._path, "ab") as file:
      file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
      file.flush()
      os.fsync(file.fileno())

  def _check(self, line: bytes, header: Mapping[str, Any]) -> None:
    try:
      before = dict(json.loads(line))
    except (ValueError, TypeError):
      raise ValueError(f"{self._path}: no samples of this kind; remove it, or choose another folder") from None
    if found := difference(before, json.loads(json.dumps(dict(header)))):
      raise ValueError(
        f"{self._path}: {found.name} was {found.was!r}, is now {found.now!r}; choose another folder, or remove the file"
        " to ask anew"
      )


def _row(tokenizer: Tokenizer, problem: Problem, answers: Sequence[Answer], most: int) -> dict[str, Any]:
  """What is kept of a problem's answers, what became of all, and the first example of each outcome."""
  kept: list[dict[str, Any]] = []
  outcomes: collections.Counter[str] = collections.Counter()
  examples: dict[str, str] = {}
  for number, answer in enumerate(answers):
    text = _text(tokenizer, answer)
    outcome, parts = _judged(answer, text)
    if parts is not None:
      content = {"thinking": parts[0], "response": parts[1]}
      if any(content.items() <= one.items() for one in kept):
        outcome = "duplicate"
      elif len(kept) == most:
        outcome = "surplus"
      else:
        kept.append({"number": number, **content})
    outcomes[outcome] += 1
    if outcome != "kept":
      examples.setdefault(outcome, shortened(text or answer.trajectory.error))
  return {"id": problem.id, "kept": kept, "outcomes": dict(outcomes), "examples": examples}


def _judged(answer: Answer, text: str) -> tuple[Outcome, tuple[str, str] | None]:
  """(outcome, thinking and response of an answer that may be kept)."""
  if answer.broken:
    return "failed", None
  if answer.truncated:
    return "truncated", None
  if not all(answer.trajectory.sampled):
    return "halted", None
  parts = parse(text, thinks=True)
  if parts is None:
    return "broken format", None
  return ("kept", parts) if answer.right else ("wrong", None)


def _text(tokenizer: Tokenizer, answer: Answer) -> str:
  """The answer with its tags, without the token that ends it."""
  tokens = list(answer.trajectory.tokens)
  if tokens and tokens[-1] in (tokenizer.im_end_id, tokenizer.eos_id):
    tokens.pop()
  return answer_text(tokenizer, tokens)


def _collected(problems: Sequence[Problem], rows: Sequence[Mapping[str, Any]]) -> RejectionSampled:
  found = RejectionSampled(problems=len(problems))
  for problem, row in zip(problems, rows, strict=True):
    found.without += not row["kept"]
    found.outcomes.update(row["outcomes"])
    for outcome, text in row["examples"].items():
      examples = found.examples.setdefault(outcome, [])
      if len(examples) < _EXAMPLES:
        examples.append({"id": problem.id, "text": text})
    for kept in row["kept"]:
      turns = (Turn(problem.prompt, kept["response"], kept["thinking"]),)
      id = f"sampled/{problem.id}/{kept['number']}"
      found.samples.append(Sample(id, problem.domain, turns, verified=True))
  return found
