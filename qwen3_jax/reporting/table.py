"""A table of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Table:
  title: str
  header: tuple[str, ...]
  rows: Sequence[tuple[str, ...]]
  text_columns: frozenset[int]  # aligned left; the others hold numbers
  note: str = ""
