"""What the TPU compiler's own schedule says of the Pallas kernels in a program, without a TPU.

libtpu can write down the bundles of instructions that it schedules, and how often each unit is in use. A kernel's hot
body is the loop body with the most matrix products. Its cycles are its bundles, and the stalls that the compiler counts
in the kernel, shared out by products. Waiting for HBM is not in these figures.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import PartitionSpec as P

from qwen3_jax.compilation.topologies import parse_topology, prepare_environment

_PEAK_SLOTS = 3


@dataclasses.dataclass(frozen=True)
class Body:
  """A loop body with matrix products."""

  bundles: int
  products: int  # instructions
  slots: dict[str, float]  # share of a unit's issue slots in use, busiest first


@dataclasses.dataclass(frozen=True)
class Kernel:
  name: str
  cycles: int  # of the hot body
  utilisation: float  # of the matrix unit, in the hot body
  bodies: list[Body]  # hot first


def compile_for(fn: Callable, arrays: list[jax.ShapeDtypeStruct], topology: str) -> None:
  """For one device of the topology."""
  device = parse_topology(topology).devices()[:1]
  mesh = jax.make_mesh((1,), ("device",), devices=device, axis_types=(jax.sharding.AxisType.Auto,))
  there = jax.sharding.NamedSharding(mesh, P())
  arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there) for x in arrays]
  jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)).lower(*arrays).compile()


def compiled_in_child(arguments: list[str], names: str) -> list[Kernel]:
  """Kernels with `names` (a regular expression) in what `python arguments` compiles, once, in a process of its own.

  A process of its own because libtpu reads the flags that make it write when it is loaded.
  """
  prepare_environment()
  with tempfile.TemporaryDirectory() as folder:
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=true"
    environment = {**os.environ, "LIBTPU_INIT_ARGS": flags, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    child = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if child.returncode:
      raise RuntimeError(f"{' '.join(arguments)} ended with {child.returncode}:\n{child.stderr[-2000:]}")
    return [_read(Path(folder), name) for name in _kernel_names(folder) if re.match(names, name)]


def _kernel_names(folder: str) -> list[str]:
  paths = glob.glob(f"{folder}/*schedule-analysis_final_bundles.txt")
  found = (re.fullmatch(r"\d+-(.+)-\d+-schedule-analysis_final_bundles\.txt", os.path.basename(p)) for p in paths)
  return sorted({match[1] for match in found if match})


def _only(folder: Path, pattern: str) -> str:
  (path,) = folder.glob(pattern)
  return path.read_text(errors="replace")


def _number(pattern: str, text: str) -> int:
  match = re.search(pattern, text)
  if not match:
    raise RuntimeError(
      f"{pattern} is not in what the compiler wrote; expected libtpu 0.0.42 or a version that writes so"
    )
  return int(match[1])


def _read(folder: Path, kernel: str) -> Kernel:
  name = glob.escape(kernel)
  scheduled = _only(folder, f"*-{name}-[0-9]*-schedule-analysis_final_bundles.txt")
  bundles = _number(r"total scheduled bundles:\s+(\d+)", scheduled)
  per_bundle = _only(folder, f"*-{name}-[0-9]*-final_hlo-static-per-bundle-utilization.txt").splitlines()
  units = [unit.strip() for unit in per_bundle[1].split(",")]
  capacity = [int(n) for n in per_bundle[2].split()]
  used = [[int(n) for n in line.split()] for line in per_bundle[4:] if line.strip()]

  bodies = []
  for first, last, products in _loops(_only(folder, f"*-{name}-[0-9]*-final_bundles.txt")):
    rows = used[first : last + 1]
    shares = {unit: sum(row[n] for row in rows) / len(rows) / capacity[n] for n, unit in enumerate(units)}
    busiest = dict(sorted(shares.items(), key=lambda item: -item[1])[:_PEAK_SLOTS])
    bodies.append(Body(len(rows), products, busiest))
  bodies.sort(key=lambda body: (-body.products, body.bundles))

  cycles, busy = _cycles(folder, kernel)
  hot = bodies[0]
  share = hot.products / sum(body.products for body in bodies)
  hot_cycles = max(hot.bundles + (cycles - bundles) * share, busy * share)
  return Kernel(kernel, round(hot_cycles), busy * share / hot_cycles, bodies)


def _cycles(folder: Path, kernel: str) -> tuple[int, float]:
  """Of one pass over all of a kernel's code: cycles, stalls included, and those in which a matrix unit multiplies."""
  for path in folder.glob("*hlo-static-bundle-profile*"):
    section = re.search(rf"HLO: %{re.escape(kernel)}\b.*?(?=\nHLO:|\Z)", path.read_text(errors="replace"), re.DOTALL)
    if section:
      cycles = _number(r"VMEM_SPILL_COUNT: \(\d+/(\d+)\)", section[0])
      shares: dict[str, float] = {}
      for unit, used, most in re.findall(r"- (MXU_\d) matmul\w*: \((\d+)/(\d+)\)", section[0]):
        shares[unit] = shares.get(unit, 0.0) + int(used) / int(most)
      return cycles, max(shares.values()) * cycles
  raise RuntimeError(f"no profile of {kernel} in {folder}")


def _loops(text: str) -> list[tuple[int, int, int]]:
  """First and last bundle, and products, of the loop bodies that have products; bodies split at inner loops."""
  found: list[tuple[int, int, int]] = []
  run: list[tuple[int, int]] = []  # bundle, products
  depth = 0
  for line in [*text.splitlines(), "0 {"]:
    match = re.match(r"\s*(0x[0-9a-f]+|0)\s+([A-Z: ]*?)((?:>\s*)*)\{", line)
    if not match:
      continue
    if match[3].count(">") != depth or match[2].startswith("LB"):
      products = sum(count for _, count in run)
      if depth and products:
        found.append((run[0][0], run[-1][0], products))
      run, depth = [], match[3].count(">")
    run.append((int(match[1], 16), line.count("vmatmul.")))
  return found
