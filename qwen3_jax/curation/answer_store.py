"""AnswerStore: a teacher's answers on disk, block by block, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.curation.answer_filters import Counts, add, totals
from qwen3_jax.curation.jsonl import write_lines
from qwen3_jax.curation.plans import difference
from qwen3_jax.workdir import read_json, write_json


class AnswerStore:
  """A folder that ends as `answers.jsonl`, a conversation a line, and `report.json`.

  Until then `blocks/` holds what there is: a file for each block of answers, written in one step. Its first line has
  the counts of the block, the others are its conversations.

  Args:
    plan: JSON-able, of what the answers depend on.

  Raises ValueError for a folder with another plan, or with something else.
  """

  def __init__(self, folder: Path, plan: Mapping[str, Any]):
    self._folder, self._blocks = folder, folder / "blocks"
    self.answers, self.report = folder / "answers.jsonl", folder / "report.json"
    self._plan = json.loads(json.dumps(dict(plan)))
    folder.mkdir(parents=True, exist_ok=True)
    self._check()
    self.counts: Counts = {}
    self.tokens: dict[str, int] = {}  # written by the teacher, by mode
    self.blocks = 0  # on disk
    if self.report.exists():
      shutil.rmtree(self._blocks, ignore_errors=True)
      return
    while self._path(self.blocks).exists():
      header = json.loads(next(self._lines(self.blocks)))
      self._count(header["counts"], header["tokens"])
      self.blocks += 1

  def kept(self) -> Iterator[dict[str, Any]]:
    """The conversations on disk, in their order."""
    for block in range(self.blocks):
      yield from map(json.loads, self._conversations(block))

  def add(self, conversations: Sequence[Mapping[str, Any]], counts: Counts, tokens: Mapping[str, int]) -> None:
    """The next block. It is on disk when this returns."""
    write_lines(self._path(self.blocks), [{"counts": counts, "tokens": dict(tokens)}, *conversations])
    self._count(counts, tokens)
    self.blocks += 1

  def finish(self) -> dict[str, Any]:
    """Puts the blocks together -> the report, which is on disk."""
    partial = self.answers.with_name(f".{self.answers.name}.partial")
    with open(partial, "w", encoding="utf-8", errors="surrogatepass") as file:
      for block in range(self.blocks):
        file.writelines(self._conversations(block))
      file.flush()
      os.fsync(file.fileno())
    partial.replace(self.answers)
    report = {
      "plan": self._plan,
      "totals": totals(self.counts),
      "counts": {mode: dict(sorted(domains.items())) for mode, domains in sorted(self.counts.items())},
      "tokens": dict(sorted(self.tokens.items())),
    }
    write_json(self.report, report)
    shutil.rmtree(self._blocks, ignore_errors=True)
    return report

  def _path(self, block: int) -> Path:
    return self._blocks / f"{block:06d}.jsonl"

  def _lines(self, block: int) -> Iterator[str]:
    with open(self._path(block), encoding="utf-8", errors="surrogatepass", newline="\n") as file:
      yield from file

  def _conversations(self, block: int) -> Iterator[str]:
    lines = self._lines(block)
    next(lines)
    return lines

  def _count(self, counts: Counts, tokens: Mapping[str, int]) -> None:
    add(self.counts, counts)
    for mode, number in tokens.items():
      self.tokens[mode] = self.tokens.get(mode, 0) + number

  def _check(self) -> None:
    path = self._folder / "plan.json"
    if not path.exists():
      others = sorted(entry.name for entry in self._folder.iterdir() if not entry.name.startswith("."))
      if others:
        raise ValueError(f"{self._folder}: holds {others[0]!r} and no teacher's answers; choose another folder")
      write_json(path, self._plan)
      return
    if found := difference(read_json(path), self._plan):
      was, now = (json.dumps(value, ensure_ascii=False) for value in (found.was, found.now))
      raise ValueError(
        f"{self._folder}: {found.name} was {was}, is now {now}; choose another folder, or remove this one"
      )
