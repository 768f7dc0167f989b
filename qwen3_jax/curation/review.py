"""Queries whose responses are all wrong, for a person to look at (Qwen3 report, section 4.1).

A line of the file is a query. A person may
  set "reference" to another answer: the query's right one was wrong, its responses are judged by this;
  set "response" (and "thinking"): a response of their own, which is taken as it is;
  set "drop" to true: the query is not used.
A line that is left as it is stays open. The next run reads the file and goes on from what it says; what a person wrote
is kept as long as the file is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.curation.jsonl import write_lines
from qwen3_jax.curation.responses import Answered
from qwen3_jax.evaluation.records import field, read_records
from qwen3_jax.problems.problem import Problem
from qwen3_jax.workdir import read_json_lines

_FIELDS = ("id", "domain", "prompt", "reference", "response", "thinking", "drop", "responses")


@dataclasses.dataclass(frozen=True)
class Decision:
  """What a person decided of a query."""

  reference: str = ""  # "" or as it was: no other
  response: str = ""
  thinking: str = ""
  drop: bool = False

  def changed_reference(self, problem: Problem) -> str:
    return self.reference if self.reference.strip() and self.reference != problem.reference else ""

  def decided(self, problem: Problem) -> bool:
    return bool(self.drop or self.response.strip() or self.changed_reference(problem))


def read_review(path: Path) -> dict[str, Decision]:
  """Decisions by the queries' ids; none where there is no file, or an empty one.

  Raises ValueError naming file, line and field for what a person mistyped.
  """
  if not path.is_file() or not path.read_text(encoding="utf-8").strip():
    return {}
  decisions: dict[str, Decision] = {}
  for line, (id, decision) in read_records(path, _parse):
    if id in decisions:
      raise ValueError(f"{line}: id {id!r} for the second time")
    decisions[id] = decision
  return decisions


def _parse(record: dict[str, Any]) -> tuple[str, Decision]:
  for name in record:
    if name not in _FIELDS:
      raise ValueError(f"unknown field {name!r}.{nearest.or_all(name, _FIELDS)}")
  text = lambda name: field(record, name, str) if record.get(name) is not None else ""
  drop = field(record, "drop", bool) if "drop" in record else False
  return field(record, "id", str), Decision(text("reference"), text("response"), text("thinking"), drop)


def write_review(path: Path, failed: Sequence[Answered], earlier: Mapping[str, Decision]) -> None:
  """All queries that failed, each with what a person already wrote of it.

  What they wrote of queries that are no longer among these is kept, too; without anything to say there is no file.
  """
  records = []
  for answered in failed:
    problem = answered.problem
    decision = earlier.get(problem.id, Decision())
    responses = [{"response": trace.response, "wrong": why} for trace, why in zip(answered.traces, answered.wrong)]
    records.append(
      {
        "id": problem.id,
        "domain": problem.domain,
        "prompt": problem.prompt,
        "reference": decision.reference or problem.reference,
        "response": decision.response,
        "thinking": decision.thinking,
        "drop": decision.drop,
        "responses": responses,
      }
    )
  known = {record["id"] for record in records}
  for record in read_json_lines(path):
    if record["id"] not in known and (record.get("drop") or record.get("response")):
      records.append(record)
  if records or path.is_file():
    write_lines(path, records)
