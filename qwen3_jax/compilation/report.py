"""The compile report of one program: a dictionary for JSON, from which the table is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from qwen3_jax.compilation.buffer_lifetimes import aliased_outputs, simulated_peak
from qwen3_jax.compilation.collectives import Collective, Network
from qwen3_jax.compilation.compiler import (
  Compiled,
  HbmOverflow,
  Lowered,
  Program,
  compile_lowered,
  host_peak_bytes,
)
from qwen3_jax.compilation.hlo import parse_module
from qwen3_jax.compilation.ideal_network import ideal_collectives
from qwen3_jax.compilation.memory import (
  OTHER,
  MemoryStatistics,
  device_bytes,
  device_peak,
  memory_categories,
  shard_shapes,
)
from qwen3_jax.compilation.program_cost import Cost, program_cost
from qwen3_jax.compilation.roofline import Roofline, roofline
from qwen3_jax.compilation.topologies import Topology
from qwen3_jax.train_program import TrainProgram

Report = dict[str, Any]
_LARGEST = 8  # buffers listed


def compile_report(
  program: Program, lowered: Lowered, mesh: Mesh, topology: Topology, beside: Mapping[str, Any] | None = None
) -> Report:
  """Compiles and measures. `fits` is False when the compiler refuses for lack of HBM; what it then lacks is left out.

  `beside`: what else is on the devices, by kind, as `program.resident` names what always is.
  Every figure is per device unless its name says otherwise; docs/tpu.md says how each is found.
  """
  arguments = program.arguments(mesh)
  of_arguments = {kind: device_bytes(tree) for kind, tree in arguments.items()}
  result = compile_lowered(lowered, sum(of_arguments.values()))
  report: Report = {
    "topology": topology.name,
    "num_slices": topology.num_slices,
    "devices": topology.device_count,
    "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
    "parameters": program.model.parameter_count(),
    "layers": program.model.num_layers,
    "tokens_per_step": program.tokens_per_step,
    "fits": isinstance(result, Compiled),
    "lower_seconds": lowered.seconds,
    "compile_seconds": result.seconds,
  }
  if isinstance(result, HbmOverflow):
    report |= _overflow(result, of_arguments)
  else:
    report |= _measured(program, result, arguments, mesh, topology)
  for kind, tree in {**program.resident(mesh), **(beside or {})}.items():
    _add_resident(report, kind, device_bytes(tree))
  return report | {"host_peak_bytes": host_peak_bytes()}


def _add_resident(report: Report, kind: str, size: int) -> None:
  """Counts what is on the devices beside the program."""
  hbm = report["hbm"]
  hbm["argument"] += size
  hbm["peak"] += size
  report["hbm_categories"][kind] = size
  if hbm["peak"] > hbm["limit"]:
    report["fits"] = False
    report["overflow_bytes"] = hbm["peak"] - hbm["limit"]


def _overflow(overflow: HbmOverflow, of_arguments: Mapping[str, int]) -> Report:
  argument = sum(of_arguments.values())
  return {
    "hbm": {
      "argument": argument,
      "temp": overflow.required - argument,
      "peak": overflow.required,
      "limit": overflow.limit,
    },
    "overflow_bytes": overflow.excess,
    "hbm_categories": {**of_arguments, OTHER: overflow.required - argument},
    "largest_buffers": [
      {"bytes": size, "shape": shape, "scope": scope} for size, scope, shape in overflow.largest[:_LARGEST]
    ],
  }


def _measured(
  program: Program, compiled: Compiled, arguments: Mapping[str, Any], mesh: Mesh, topology: Topology
) -> Report:
  memory = compiled.memory
  module = parse_module(compiled.hlo)
  cost = program_cost(module, mesh.shape, topology.num_slices)
  network = Network(topology, list(mesh.devices.flat))
  bounds = roofline(cost, topology.chip, network)
  parameter_shapes = shard_shapes(arguments["parameters"])
  replay = simulated_peak(module, aliased_outputs(compiled.hlo))
  peak = device_peak(memory, replay)
  buffers = sorted(replay.buffers, key=lambda buffer: -buffer.array.padded_bytes)
  devices = topology.device_count
  ideal = ideal_collectives(program, mesh, arguments["parameters"]) if isinstance(program, TrainProgram) else None
  return {
    "hbm": {
      "argument": memory.argument,
      "temp": peak - memory.argument,
      "peak": peak,
      "limit": topology.chip.hbm_limit,
      "host": memory.host,
    },
    "hbm_categories": memory_categories(replay, peak, arguments, parameter_shapes, program.model.num_layers),
    "largest_buffers": [
      {
        "bytes": buffer.array.padded_bytes,
        "shape": f"{buffer.array.dtype}{list(buffer.array.dims)}",
        "scope": buffer.source.op_name or buffer.written_by,
      }
      for buffer in buffers[:_LARGEST]
    ],
    "flops_per_step": {
      "model": program.flops_per_step,
      "compiled": cost.flops * devices,
      "recompute": cost.flops * devices - program.flops_per_step,
      "rematerialized": cost.rematted_flops * devices,
    },
    "collectives": summarize(cost.collectives, bounds.waits, network, program.model.num_layers),
    "network_bytes": _sent(cost.collectives, program.model.num_layers),
    "ideal_network_bytes": _sent(ideal, program.model.num_layers) if ideal is not None else None,
    "roofline": _roofline(bounds),
    "predicted_step_s": {
      "overlapped": bounds.overlapped,
      "scheduled": bounds.scheduled,
      "serial": bounds.serial,
    },
    "predicted_mfu": _mfu(program, bounds.overlapped, topology),
    "predicted_mfu_scheduled": _mfu(program, bounds.scheduled, topology),
    "predicted_mfu_serial": _mfu(program, bounds.serial, topology),
    "notes": _notes(cost, memory),
  }


def _roofline(bounds: Roofline) -> Report:
  return {
    "compute_s": bounds.compute,
    "memory_s": bounds.memory,
    "network_s": bounds.network,
    "ici_s": bounds.ici,
    "dcn_s": bounds.dcn,
    "waiting_s": bounds.waiting,
    "binding": bounds.binding,
  }


def _mfu(program: Program, seconds: float, topology: Topology) -> float:
  return program.flops_per_step / (seconds * topology.device_count * topology.chip.device_peak_flops)


def _sent(collectives: list[Collective], num_layers: int) -> Report:
  """What a device sends in a step, and for one layer of it (all passes and micro-batches together)."""
  of_layers = [item for item in collectives if num_layers in item.loops]
  total = lambda items: sum(item.network_bytes * item.count for item in items)
  return {"step": total(collectives), "layer": total(of_layers) / num_layers}


def _notes(cost: Cost, memory: MemoryStatistics) -> list[str]:
  loops = [f"a loop whose length depends on data is counted once: {name}" for name in cost.data_dependent_loops]
  kernels = [f"a kernel that states no cost is counted as no arithmetic: {name}" for name in cost.uncounted_kernels]
  notes = sorted(loops) + sorted(kernels)
  if cost.unbalanced_rounds:
    notes.append("further rounds of tokens to experts, which only an unbalanced router needs, are not counted")
  if memory.host:
    notes.append("what waits in the host's memory hides the compiler's peak: it is replayed")
  return notes


def summarize(
  collectives: list[Collective], waited: Sequence[float], network: Network, num_layers: int
) -> list[Report]:
  """One entry per kind, mesh axes, element type and loops around; most time first.

  `count`, `bytes` (sent by one device), `seconds` and `waiting_seconds` are totals of a step; `per_layer` says that the
  layer loop is one of the loops around.
  """
  entries: dict[tuple, Report] = {}
  for item, wait in zip(collectives, waited):
    key = (item.kind, item.axes, item.dtype, item.loops)
    entry = entries.setdefault(
      key,
      {
        "kind": item.kind,
        "axes": item.axes,
        "dtype": item.dtype,
        "group_size": len(item.group),
        "loops": list(item.loops),
        "per_layer": num_layers in item.loops,
        "count": 0,
        "bytes": 0.0,
        "seconds": 0.0,
        "waiting_seconds": 0.0,
        "scopes": [],
      },
    )
    entry["count"] += item.count
    entry["bytes"] += item.network_bytes * item.count
    entry["seconds"] += network.seconds(item) * item.count
    entry["waiting_seconds"] += wait
    if item.scope and item.scope not in entry["scopes"]:
      entry["scopes"].append(item.scope)
  return sorted(entries.values(), key=lambda entry: -entry["seconds"])
