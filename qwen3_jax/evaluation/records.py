"""Records of an evaluation from a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_records(path: Path, fields: Sequence[str], limit: int = 0) -> list[dict[str, Any]]:
  """Objects, each with all `fields`; a field "a|b" may be either. At most `limit`, 0: all.

  Raises ValueError with the line for what is malformed, OSError if the file cannot be read.
  """
  records: list[dict[str, Any]] = []
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
    if not isinstance(record, dict):
      raise ValueError(f"{path}, line {number}: expected an object, found {type(record).__name__}")
    for field in fields:
      if not any(name in record for name in field.split("|")):
        raise ValueError(f"{path}, line {number}: no field {field!r}; it has {', '.join(record) or 'none'}")
    records.append(record)
    if len(records) == limit:
      break
  if not records:
    raise ValueError(f"{path}: no records")
  return records
