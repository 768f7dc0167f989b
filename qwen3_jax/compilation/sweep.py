"""Tries meshes and remat policies for one stage and ranks those that fit by predicted step time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict
from rich.console import Console

from qwen3_jax.compilation.compiler import lower
from qwen3_jax.compilation.estimate import Estimate, estimate
from qwen3_jax.compilation.fixes import Change, changed, of_stage
from qwen3_jax.compilation.report import Report, compile_report
from qwen3_jax.compilation.tables import duration, print_rows, size
from qwen3_jax.compilation.topologies import Topology
from qwen3_jax.config import stage_mesh, stage_names
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.models.config import REMAT_POLICIES
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages import kinds

_MOST_TENSOR = 8  # splitting heads further sends more than it saves on these models
_MOST_CONTEXT = 16
# An estimate this far above the limit is not worth a compile.
_HOPELESS = 1.5


@dataclasses.dataclass(frozen=True)
class Candidate:
  change: Change
  config: ConfigDict
  estimate: Estimate


def sweep(config: ConfigDict, topology: Topology, limit: int, out: Console) -> list[Report]:
  """Reports of at most `limit` candidates for the config's stage: those that fit first, the fastest of them first.

  Compiled in the order of the analytic estimate: those estimated to fit, then by estimated time. Each report has
  `change`: the keys that make the candidate. Raises ConfigError when the config names no stage and has several.
  """
  stages = stage_names(config)
  if len(stages) > 1:
    raise ConfigError([f"--sweep: works on one stage; name one, e.g. --config=...:stage={stages[0]}"])
  stage = stages[0]
  out.print(f"estimating the meshes of {topology.device_count} devices")
  found = sorted(candidates(config, stage, topology), key=lambda found: _order(found, topology))
  if not found:
    raise ConfigError([f"--sweep: no mesh of {topology.device_count} devices is valid for stage {stage!r}"])
  out.print(f"{len(found)} candidates; compiling the {min(limit, len(found))} most promising")
  results = []
  for number, candidate in enumerate(found[:limit], 1):
    mesh = make_mesh(stage_mesh(candidate.config, stage), topology.devices())
    program = kinds.make_program(candidate.config, stage)
    report = compile_report(program, lower(program, mesh), mesh, topology)
    name = " ".join(f"{key.split('.')[-1]}={value}" for key, value in candidate.change.items())
    results.append({"name": name, "stage": stage, "change": candidate.change} | report)
    told = duration(report["predicted_step_s"]["scheduled"]) if report["fits"] else "does not fit"
    out.print(f"{number}/{min(limit, len(found))} {name}: {told}, compiled in {report['compile_seconds']:.0f} s")
  return sorted(results, key=_rank)


def candidates(config: ConfigDict, stage: str, topology: Topology) -> Iterator[Candidate]:
  """Every valid mesh and remat policy that is not hopelessly large."""
  devices = topology.devices()
  for shape in mesh_shapes(topology.device_count, config.model.num_experts, topology.num_slices):
    mesh, arguments = make_mesh(shape, devices), None
    for policy in REMAT_POLICIES:
      change = {f"mesh.{axis}": length for axis, length in shape.items()} | {"model.remat": policy}
      change = of_stage(change, config, stage)
      try:
        valid = changed(config, change, topology)
      except ConfigError:
        continue
      program = kinds.make_program(valid, stage)
      arguments = arguments or program.arguments(mesh)
      found = estimate(program, mesh, topology, arguments)
      if found.bytes <= _HOPELESS * topology.chip.hbm_limit:
        yield Candidate(change, valid, found)


def mesh_shapes(devices: int, num_experts: int, num_slices: int = 1) -> Iterator[dict[str, int]]:
  """Factorisations of the devices over fsdp, expert, context and tensor; `data` spans the slices."""
  per_slice = devices // num_slices
  experts = [size for size in _divisors(per_slice) if num_experts and num_experts % size == 0] or [1]
  contexts = [size for size in _divisors(per_slice) if size <= _MOST_CONTEXT]
  tensors = [size for size in _divisors(per_slice) if size <= _MOST_TENSOR]
  for expert, context, tensor in itertools.product(experts, contexts, tensors):
    if per_slice % (expert * context * tensor) == 0:
      fsdp = per_slice // (expert * context * tensor)
      yield {"data": num_slices, "fsdp": fsdp, "expert": expert, "context": context, "tensor": tensor}


def print_ranking(results: list[Report], out: Console) -> None:
  rows = [
    [
      result["name"],
      size(result["hbm"]["peak"]),
      duration(result["predicted_step_s"]["scheduled"]) if result["fits"] else "does not fit",
      f"{result['predicted_mfu_scheduled']:.1%}" if result["fits"] else "",
      result["roofline"]["binding"] if result["fits"] else f"+{size(result['overflow_bytes'])}",
    ]
    for result in results
  ]
  print_rows("Candidates", ("mesh and remat", "peak HBM", "step", "MFU", "bound by"), rows, out)


def _order(candidate: Candidate, topology: Topology) -> tuple:
  found = candidate.estimate
  return found.bytes > topology.chip.hbm_limit, found.seconds, found.bytes


def _rank(result: Report) -> tuple:
  return not result["fits"], result["predicted_step_s"]["scheduled"] if result["fits"] else result["overflow_bytes"]


def _divisors(number: int) -> list[int]:
  return [size for size in range(1, number + 1) if number % size == 0]
