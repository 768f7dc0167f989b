"""JSON-lines files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen3_jax.workdir import replace_file


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
  """Replaces `path` in one step."""
  path.parent.mkdir(parents=True, exist_ok=True)
  replace_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
