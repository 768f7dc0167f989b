"""Records of an evaluation from a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Line(NamedTuple):
  """Where a record stands; written `file, line 3`."""

  path: Path
  number: int

  def __str__(self) -> str:
    return f"{self.path}, line {self.number}"


def read_records(path: Path, parse: Callable[[dict[str, Any]], T], limit: int = 0) -> list[tuple[Line, T]]:
  """`parse` of each line's object. At most `limit`, 0: all.

  Raises ValueError with the line for what is malformed or what `parse` refuses, OSError if the file cannot be read.
  """
  records: list[tuple[Line, T]] = []
  for number, text in enumerate(read_text(path).split("\n"), 1):  # not splitlines: U+2028 may stand in a string
    if not text.strip():
      continue
    line = Line(path, number)
    try:
      record = json.loads(text)
    except ValueError as error:
      raise ValueError(f"{line}: not JSON ({error})") from None
    if not isinstance(record, dict):
      raise ValueError(f"{line}: expected an object, found {type(record).__name__}")
    try:
      records.append((line, parse(record)))
    except ValueError as error:
      raise ValueError(f"{line}: {error}") from None
    if len(records) == limit:
      break
  if not records:
    raise ValueError(f"{path}: no records")
  return records


def field(record: dict[str, Any], name: str, types: type | Sequence[type]) -> Any:
  """The value of a field. Raises ValueError if it is not there, or of another type."""
  expected = (types,) if isinstance(types, type) else tuple(types)
  if name not in record:
    raise ValueError(f"no field {name!r}; it has {', '.join(record) or 'none'}")
  if not isinstance(record[name], expected):
    names = " or ".join(kind.__name__ for kind in expected)
    raise ValueError(f"{name}: expected {names}, found {type(record[name]).__name__}")
  return record[name]


def read_text(path: Path) -> str:
  """Raises ValueError for a file that is not UTF-8, OSError if it cannot be read."""
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
