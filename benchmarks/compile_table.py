"""What the TPU compiler says of the experiments, without a TPU. Two tables:

  python benchmarks/compile_table.py [--rows=0.6B,8B] [--json=FILE]     peak HBM beside MaxText's
  python benchmarks/compile_table.py --stages [--rows=0.6B] [--json=FILE]   every stage on its topology

Each row is one `python -m qwen3_jax.compile` in a process of its own. 235B takes minutes and up to 4 GiB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GIB = 2**30
SEQUENCES_PER_DEVICE = 4
PEER = "MaxText 2026-08, as recorded"
SECONDS_BAR, HOST_GIB_BAR, LOWER_SECONDS_BAR = 480, 4.0, 10


@dataclasses.dataclass(frozen=True)
class Row:
  name: str
  experiment: str
  topology: str
  overrides: tuple[str, ...] = ()  # of the config, without --config.
  devices: int = 0
  bar: float = 0.0  # GiB
  peer: float = 0.0  # GiB
  stage: str = ""  # all stages unless named


# S1 (sequence 4,096) with 4 sequences per device in one micro-batch, full remat, float32 AdamW, nothing on the host
# except in the last row, where the inputs of the layers are. Peers: the same with fsdp alone.
PEAKS = (
  Row("0.6B", "dense_0_6b", "v5p:2x2x1", ("model.remat=full",), 4, 4.5, 12.34),
  Row("8B", "dense_8b", "v5p:2x2x1", ("model.remat=full",), 4, 37.0, 41.27),
  Row("30B-A3B", "moe_30b_a3b", "v5p:4x4x8", ("model.remat=full", "mesh.expert=8"), 128, 11.0, 16.03),
  Row("235B-A22B", "moe_235b", "v5p:4x8x8", ("model.remat=full", "mesh.expert=16"), 256, 30.0, 38.91),
  Row(
    "235B-A22B offloaded",
    "moe_235b",
    "v5p:4x8x8",
    ("model.remat=full", "mesh.expert=16", "model.offload_layer_inputs=True"),
    256,
    20.0,
    27.06,
  ),
)

# Every stage as its experiment has it, on the topology that is recommended for it.
STAGES = (
  Row("0.6B", "dense_0_6b", "v5p:4x4x4"),
  Row("1.7B", "dense_1_7b", "v5p:4x4x8"),
  Row("4B", "dense_4b", "v5p:4x4x8"),
  Row("8B", "dense_8b", "v5p:4x8x8"),
  Row("14B", "dense_14b", "v5p:4x8x8"),
  Row("32B", "dense_32b", "v5p:8x8x8"),
  Row("30B-A3B", "moe_30b_a3b", "v5p:4x8x8"),
  Row("235B-A22B", "moe_235b", "v5p:4x8x8"),
  Row("235B-A22B tpu7x", "moe_235b", "tpu7x:4x4x8", stage="s1"),
  Row("235B-A22B v6e", "moe_235b", "v6e:16x16", ("model.remat=full", "mesh.expert=16"), stage="s1"),
)


def compile_row(row: Row, stage: str, overrides: tuple[str, ...]) -> dict[str, Any]:
  """The report of `python -m qwen3_jax.compile`, or {"error": its last words}."""
  experiment = f"experiments/{row.experiment}.py" + (f":stage={stage}" if stage else "")
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "report.json"
    command = [sys.executable, "-m", "qwen3_jax.compile", f"--config={experiment}", f"--topology={row.topology}"]
    command += [f"--json={file}", *(f"--config.{override}" for override in overrides)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if file.exists():
      return json.loads(file.read_text())
  words = (done.stderr or done.stdout).strip().splitlines()
  return {"error": words[-1].strip() if words else f"exit code {done.returncode}"}


def peak_rows(row: Row) -> list[dict[str, Any]]:
  batch = (f"stages.s1.batch_size={SEQUENCES_PER_DEVICE * row.devices}", "stages.s1.micro_batches=1")
  report = compile_row(row, "s1", batch + row.overrides)
  if "error" in report:
    print(f"{row.name}: {report['error']}", file=sys.stderr)
    return [figure(f"peak HBM of {row.name} on {row.topology}", "GiB", None, row.bar, row.peer)]
  peak = report["hbm"]["peak"] / GIB
  return [
    figure(f"peak HBM of {row.name} on {row.topology}", "GiB", peak, row.bar, row.peer),
    figure(f"  tracing and lowering of {row.name}", "s", report["lower_seconds"], LOWER_SECONDS_BAR),
    figure(f"  compiling {row.name}", "s", report["compile_seconds"], SECONDS_BAR),
    figure("  host memory of that", "GiB", report["host_peak_bytes"] / GIB, HOST_GIB_BAR),
  ]


def figure(name: str, unit: str, ours: float | None, bar: float, peer: float | None = None) -> dict[str, Any]:
  ratio = ours / peer if ours is not None and peer else None
  row = {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": PEER if peer else None, "ratio": ratio}
  return row | {"bar": bar, "holds": ours is not None and ours <= bar}


def stage_rows(row: Row) -> list[dict[str, Any]]:
  """One row a stage; `ours` is the predicted MFU, and there is no bar but that it fits."""
  report = compile_row(row, row.stage, row.overrides)
  if "error" in report:
    print(f"{row.name}: {report['error']}", file=sys.stderr)
    return [{**figure(f"{row.name} on {row.topology}", "MFU", None, 0.0), "bar": None, "fits": False}]
  rows = []
  for stage in report.get("reports", [report]):
    fits = stage["fits"]
    rows.append(
      {
        **figure(f"{row.name} {stage['stage']} on {row.topology}", "MFU", stage.get("predicted_mfu"), 0.0),
        "bar": None,
        "holds": fits,
        "fits": fits,
        "peak_gib": stage["hbm"]["peak"] / GIB,
        "binding": stage["roofline"]["binding"] if fits else None,
        "step_seconds": stage["predicted_step_s"]["overlapped"] if fits else None,
        "scheduled_mfu": stage["predicted_mfu_scheduled"] if fits else None,
        "roofline": stage["roofline"] if fits else None,
        "saved_per_layer": stage["hbm_categories"].get("saved_activations", 0) / stage["layers"] if fits else None,
        "rematerialized": stage["flops_per_step"]["rematerialized"] / stage["flops_per_step"]["model"]
        if fits
        else None,
        "mesh": stage["mesh"],
      }
    )
  return rows


def print_peaks(rows: list[dict[str, Any]]) -> None:
  print(f"{'':60s} {'ours':>8s} {'MaxText':>8s} {'ratio':>6s} {'bar':>6s}")
  for row in rows:
    ours, peer, ratio = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("ours", "peer", "ratio"))
    verdict = "holds" if row["holds"] else "FAILS"
    print(f"{row['name']:56s} {row['unit']:3s} {ours:>8s} {peer:>8s} {ratio:>6s} {row['bar']:6.1f} {verdict}")


def print_stages(rows: list[dict[str, Any]]) -> None:
  print(
    f"{'':36s} {'MFU':>6s} {'scheduled':>9s} {'bound by':>9s} {'step, s':>9s} {'HBM, GiB':>9s}"
    f" {'saved, MiB a layer':>18s} {'remat':>6s}  mesh"
  )
  for row in rows:
    if not row["fits"]:
      peak = f", peak {row['peak_gib']:.2f} GiB" if "peak_gib" in row else ""
      print(f"{row['name']:36s} does not fit{peak}")
      continue
    mesh = " ".join(f"{axis}={size}" for axis, size in row["mesh"].items())
    print(
      f"{row['name']:36s} {row['ours']:6.1%} {row['scheduled_mfu']:9.1%} {row['binding']:>9s}"
      f" {row['step_seconds']:9.3f} {row['peak_gib']:9.2f} {row['saved_per_layer'] / 2**20:18.1f}"
      f" {row['rematerialized']:6.1%}  {mesh}"
    )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--stages", action="store_true", help="every stage on its topology, instead of peak HBM")
  parser.add_argument("--rows", default="", help="names of rows, separated by commas; all of them if not given")
  parser.add_argument("--json", type=Path)
  options = parser.parse_args()
  table = STAGES if options.stages else PEAKS
  wanted = [name.strip() for name in options.rows.split(",") if name.strip()]
  unknown = [name for name in wanted if name not in {row.name for row in table}]
  if unknown:
    parser.error(f"--rows: unknown {', '.join(unknown)}; known: {'; '.join(row.name for row in table)}")
  rows: list[dict[str, Any]] = []
  for row in table:
    if not wanted or row.name in wanted:
      rows += (stage_rows if options.stages else peak_rows)(row)
  (print_stages if options.stages else print_peaks)(rows)
  if options.json:
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, no TPU"
    options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
  return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
  sys.exit(main())
