"""What `python -m qwen3_jax.compile --json=WORKDIR/compile/NAME.json` predicts, in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3_jax.reporting.numbers import MISSING, number, percent
from qwen3_jax.reporting.run_record import visible
from qwen3_jax.reporting.table import Table
from qwen3_jax.workdir import read_json

_GIB = 2**30


def compile_table(folder: Path, notices: list[str]) -> Table:
  """A row for each program in the .json files of a folder; a damaged file is named in a notice."""
  rows = []
  for path in sorted(folder.glob("*.json")):
    try:
      rows += [_row(report) for report in _reports(read_json(path))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
      notices.append(f"{folder.name}/{path.name} is damaged")
  header = ("Program", "Topology", "Devices", "Mesh", "Fits", "HBM, GiB per device", "Step", "MFU")
  note = (
    "Compiled for TPUs that were not there. Step time and MFU are predictions from the compiled program, with the"
    " network as it is scheduled; the decoding of rollouts has no MFU."
  )
  return Table("Compiled for TPU", header, rows, frozenset({0, 1, 3, 4}), note)


def _reports(content: Any) -> list[dict[str, Any]]:
  if isinstance(content, dict):
    content = content.get("reports", content.get("candidates", [content]))
  if not isinstance(content, list):
    raise TypeError("no reports")
  return content


def _row(report: dict[str, Any]) -> tuple[str, ...]:
  hbm, mesh = report["hbm"], report["mesh"]
  step = report.get("predicted_step_s") or {}
  mfu = None if "decoding" in report else report.get("predicted_mfu_scheduled")
  return (
    visible(str(report["name"])),
    visible(str(report["topology"])),
    f"{report['devices']:,}",
    visible(", ".join(f"{axis}={size}" for axis, size in mesh.items())) or "one device",
    "yes" if report["fits"] else "no",
    f"{number(hbm['peak'] / _GIB, '{:.2f}'.format)} of {number(hbm['limit'] / _GIB, '{:.2f}'.format)}",
    number(step.get("scheduled"), lambda value: f"{value:.3f} s" if value >= 1 else f"{1e3 * value:.3g} ms"),
    number(mfu, percent) if mfu is not None else MISSING,
  )
