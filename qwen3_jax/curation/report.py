"""What each filter of the curation removed: counts by domain, examples; as JSON and as Markdown."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwen3_jax.problems.problem import Problem
from qwen3_jax.workdir import replace_file, write_json

_EXAMPLES = 5  # of each filter: of different domains as far as there are
_LONGEST = 300  # characters of an example


@dataclasses.dataclass
class Filter:
  """One filter: what it saw, what it removed."""

  name: str
  unit: str  # "queries", "responses"
  before: int
  removed: dict[str, int]  # by domain
  examples: list[dict[str, str]]

  @property
  def after(self) -> int:
    return self.before - sum(self.removed.values())


@dataclasses.dataclass
class Report:
  """Filters in the order in which they ran, and what came out."""

  filters: list[Filter] = dataclasses.field(default_factory=list)
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # name -> number, or numbers by domain

  def add(self, name: str, unit: str, seen: Iterable[tuple[Problem, str, str]]) -> None:
    """seen: of each thing that the filter saw its problem, why it was removed ("": it stays), and its text."""
    before, removed = 0, collections.Counter[str]()
    examples: list[dict[str, str]] = []
    domains: set[str] = set()
    later: list[dict[str, str]] = []
    for problem, reason, text in seen:
      before += 1
      if not reason:
        continue
      removed[problem.domain] += 1
      example = {"id": problem.id, "domain": problem.domain, "reason": _short(reason), "text": _short(text)}
      (later if problem.domain in domains else examples).append(example)
      domains.add(problem.domain)
    self.filters.append(Filter(name, unit, before, dict(sorted(removed.items())), (examples + later)[:_EXAMPLES]))

  def as_dict(self) -> dict[str, Any]:
    return {"filters": [dataclasses.asdict(one) | {"after": one.after} for one in self.filters], **self.facts}

  def markdown(self) -> str:
    lines = ["# Cold-start curation", "", "| filter | of | before | removed | left |", "|---|---|---|---|---|"]
    for one in self.filters:
      lines.append(f"| {one.name} | {one.unit} | {one.before} | {one.before - one.after} | {one.after} |")
    for name, fact in self.facts.items():
      lines += ["", f"**{name}**: " + (_joined(fact) if isinstance(fact, dict) else str(fact))]
    for one in self.filters:
      if one.removed:
        lines += ["", f"## {one.name}", "", f"Removed by domain: {_joined(one.removed)}", ""]
        for example in one.examples:
          lines.append(f"- `{example['id']}` ({example['domain']}): {_plain(example['reason'])}  ")
          lines.append(f"  > {_plain(example['text'])}")
    return "\n".join(lines) + "\n"

  def write(self, folder: Path) -> None:
    """report.json and report.md, each in one step."""
    write_json(folder / "report.json", self.as_dict())
    replace_file(folder / "report.md", self.markdown())


def _joined(counts: dict[str, Any]) -> str:
  return ", ".join(f"{name or 'none'} {count}" for name, count in counts.items()) or "none"


def _short(text: str) -> str:
  text = " ".join(text.split())
  return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 100]} ... {text[-95:]}"


def _plain(text: str) -> str:
  return text.replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
