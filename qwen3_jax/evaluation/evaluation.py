"""What an evaluator gives."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Evaluation:
  metrics: dict[str, float]
  rows: list[dict[str, Any]]  # of each problem or text
