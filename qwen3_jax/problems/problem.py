"""Problem: a question whose answers a verifier can judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Problem:
  """One query-verifier pair (Qwen3 report, section 4.2). All fields are JSON-able."""

  id: str  # unique among the problems of a run; the same whenever the same problem is made
  domain: str  # e.g. "mathematics"
  sub_domain: str  # e.g. "algebra"
  prompt: str  # what the user asks
  verifier: Mapping[str, Any]  # {"kind": name in rewards.registry, ...: its options}
  reference: str = ""  # the right answer as text; "" where only the verifier knows
