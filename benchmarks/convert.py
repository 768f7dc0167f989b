"""Conversion of large checkpoints, both ways: peak host memory, and wall time beside copying the same files.

  python benchmarks/convert.py [--scale=0.1] [--repeats=3] [--json=FILE] [--folder=DIR]

Synthesises bfloat16 checkpoints in the shapes of Qwen3-4B (8.0 GB) and of 8 layers of Qwen3-30B-A3B (128 experts,
10.9 GB), converts each to our folder and back in processes of their own, and compares every tensor with the source.
Needs free disk for four times the larger checkpoint; removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from qwen3_jax.huggingface import weights, write_config
from qwen3_jax.models.config import ModelConfig, model_config
from qwen3_jax.safetensors_io import SafetensorsFolder, SafetensorsWriter

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MEMORY_BAR_GB = 2.0
TIME_BAR = 3.0
SHARD_BYTES = 4_000_000_000
BLOCK_ROWS = 4096


def shapes(scale: float) -> list[ModelConfig]:
  """The two models; `scale` cuts their layers and vocabulary."""
  dense, moe = model_config("qwen3-4b"), model_config("qwen3-30b-a3b").replace(num_layers=8)
  return [
    config.replace(
      name=name,
      num_layers=max(1, round(config.num_layers * scale)),
      vocab_size=max(1024, round(config.vocab_size * scale)),
    )
    for name, config in (("4B shape", dense), ("MoE shape, 8 layers x 128 experts", moe))
  ]


def synthesise(folder: Path, config: ModelConfig) -> int:
  """Writes a sharded checkpoint of random bits; returns its bytes."""
  folder.mkdir()
  tensors = {name: (BFLOAT16, weight.disk_shape) for weight in weights(config) for _, name in weight.names()}
  writer = SafetensorsWriter(folder, tensors, SHARD_BYTES)
  random = np.random.default_rng(0)
  for name, (_, shape) in tensors.items():
    for row in range(0, shape[0], BLOCK_ROWS):
      block = (min(BLOCK_ROWS, shape[0] - row), *shape[1:])
      words = random.integers(0, 1 << 16, block, dtype=np.uint16)
      writer.write(name, row, words.view(BFLOAT16))
  writer.close()
  write_config(folder, config, BFLOAT16, {})
  os.sync()
  return sum(file.stat().st_size for file in folder.iterdir())


def copy(source: Path, target: Path) -> float:
  """Seconds to copy the files onto the disk (fsync included, as the converter does)."""
  start = time.perf_counter()
  target.mkdir()
  for file in source.iterdir():
    shutil.copyfile(file, target / file.name)
    descriptor = os.open(target / file.name, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
  return time.perf_counter() - start


def convert(source: Path, target: Path) -> tuple[float, float]:
  """(seconds, peak resident GB) of the command in a process of its own."""
  start = time.perf_counter()
  arguments = [f"--input={source}", f"--output={target}"]
  done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], check=True, stdout=subprocess.PIPE, text=True)
  return time.perf_counter() - start, int(done.stdout.split()[-1]) * 1024 / 1e9


# VmHWM starts at exec; ru_maxrss would count the parent's memory at the fork.
_CHILD = """
import sys
from qwen3_jax.convert import main
code = main(sys.argv[1:])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
sys.exit(code)
"""


def identical(source: Path, result: Path) -> bool:
  """Compares all tensors, read by the safetensors library, byte by byte."""
  ours, theirs = SafetensorsFolder(source).tensors, SafetensorsFolder(result).tensors
  if ours.keys() != theirs.keys():
    return False
  by_file: dict[tuple[Path, Path], list[str]] = {}
  for name in ours:
    by_file.setdefault((ours[name].file, theirs[name].file), []).append(name)
  for (a, b), names in by_file.items():
    with safe_open(a, "np") as first, safe_open(b, "np") as second:
      for name in names:
        x, y = first.get_slice(name), second.get_slice(name)
        if x.get_shape() != y.get_shape() or x.get_dtype() != y.get_dtype():
          return False
        for start in range(0, x.get_shape()[0], BLOCK_ROWS):
          rows = slice(start, min(start + BLOCK_ROWS, x.get_shape()[0]))
          if x[rows].tobytes() != y[rows].tobytes():
            return False
  return True


def measure(config: ModelConfig, folder: Path, repeats: int) -> list[dict[str, Any]]:
  source, ours, back, copied = (folder / name for name in ("source", "ours", "back", "copied"))
  size = synthesise(source, config)
  print(f"{config.name}: {size / 1e9:.2f} GB, {len(list(source.glob('*.safetensors')))} shards", flush=True)
  copies, runs = [], {"to our folder": [], "to safetensors": []}  # type: ignore[var-annotated]
  same = True
  for _ in range(repeats):
    copies.append(copy(source, copied))
    shutil.rmtree(copied)
    runs["to our folder"].append(convert(source, ours))
    runs["to safetensors"].append(convert(ours, back))
    shutil.rmtree(ours)
    same = same and identical(source, back)
    shutil.rmtree(back)
  shutil.rmtree(source)
  peer = statistics.median(copies)
  rows = []
  for direction, results in runs.items():
    seconds, memory = statistics.median(r[0] for r in results), max(r[1] for r in results)
    name = f"{config.name} {direction}"
    rows.append(row(f"{name}: time", "s", seconds, peer, "copying the files", seconds / peer, TIME_BAR))
    rows.append(row(f"{name}: peak memory", "GB", memory, size / 1e9, "its size", memory, MEMORY_BAR_GB))
  rows.append(row(f"{config.name}: tensors that differ after both", "", 1 - same, None, None, 1 - same, 0))
  return rows


def row(
  name: str, unit: str, ours: float, peer: float | None, peer_name: str | None, judged: float, bar: float
) -> dict[str, Any]:
  """One result; `judged` (a ratio for times, else the figure itself) must not pass `bar`."""
  ratio = ours / peer if peer else None
  figures = {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio}
  return figures | {"bar": bar, "holds": judged <= bar}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--scale", type=float, default=1.0, help="share of the layers and of the vocabulary")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--json", type=Path)
  parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
  options = parser.parse_args()
  rows: list[dict[str, Any]] = []
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    for config in shapes(options.scale):
      rows += measure(config, Path(folder), options.repeats)
  print(f"{'':75s} {'ours':>8s} {'peer':>8s} {'ratio':>6s} {'bar':>5s}")
  for r in rows:
    peer, ratio = (f"{r[key]:.2f}" if r[key] is not None else "" for key in ("peer", "ratio"))
    verdict = "holds" if r["holds"] else "FAILS"
    print(f"{r['name']:72s} {r['unit']:2s} {r['ours']:8.2f} {peer:>8s} {ratio:>6s} {r['bar']:5.1f} {verdict}")
  if options.json:
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
  return 0 if all(r["holds"] for r in rows) else 1


if __name__ == "__main__":
  sys.exit(main())
