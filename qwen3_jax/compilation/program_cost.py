"""What one step of a compiled program costs: loops unrolled in thought, from its optimised HLO."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from qwen3_jax.compilation.collectives import KINDS, Collective, read_collective
from qwen3_jax.compilation.hbm_traffic import instruction_traffic
from qwen3_jax.compilation.hlo import Computation, Instruction, Module
from qwen3_jax.compilation.matmul_flops import matmul_flops
from qwen3_jax.compilation.trip_counts import TripCounts
from qwen3_jax.models.expert_parallel import UNBALANCED

_REMATTED = "rematted_computation"  # the scope in which jax.checkpoint recomputes


@dataclasses.dataclass(frozen=True)
class Event:
  """Where a computation starts collectives or needs what they bring; both at once if it does nothing else meanwhile."""

  flops: float  # of what the computation has done before
  hbm_bytes: float
  starts: str = ""  # a name
  collectives: range = range(0)  # that start, of the cost's
  needs: str = ""


@dataclasses.dataclass(frozen=True)
class Timeline:
  """The events of one computation, in the order of the schedule."""

  events: tuple[Event, ...]
  first: int = 0  # of the cost's collectives, from which the events count
  times: int = 1  # executions


@dataclasses.dataclass
class Cost:
  """Of one execution on one device."""

  flops: float = 0.0
  rematted_flops: float = 0.0  # the part of `flops` that jax.checkpoint recomputes
  hbm_bytes: float = 0.0
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  timelines: list[Timeline] = dataclasses.field(default_factory=list)
  uncounted_kernels: set[str] = dataclasses.field(default_factory=set)  # custom calls that state no cost
  data_dependent_loops: set[str] = dataclasses.field(default_factory=set)  # counted as one iteration
  unbalanced_rounds: bool = False  # whether there are rounds that only an unbalanced router needs; not counted

  def add(self, other: Cost, times: int | None = None) -> None:
    """Adds what `other` costs, `times` times over if it is the body of a loop."""
    factor = 1 if times is None else times
    self.flops += factor * other.flops
    self.rematted_flops += factor * other.rematted_flops
    self.hbm_bytes += factor * other.hbm_bytes
    around = () if times is None else (times,)
    first = len(self.collectives)
    self.timelines += [
      Timeline(timeline.events, first + timeline.first, factor * timeline.times) for timeline in other.timelines
    ]
    self.collectives += [dataclasses.replace(item, loops=around + item.loops) for item in other.collectives]
    self.uncounted_kernels |= other.uncounted_kernels
    self.data_dependent_loops |= other.data_dependent_loops
    self.unbalanced_rounds |= other.unbalanced_rounds


def program_cost(module: Module, mesh_shape: Mapping[str, int], num_slices: int = 1) -> Cost:
  """The cost of the whole program on a mesh whose `data` axis joins the slices. Of a conditional the most expensive
  branch counts.
  """
  within = dict(mesh_shape)
  if num_slices > 1:
    within["data"] //= num_slices
  return _Walk(module, within, num_slices).cost(module.entry)


class _Walk:
  def __init__(self, module: Module, mesh_shape: Mapping[str, int], num_slices: int):
    self._module = module
    self._mesh_shape = mesh_shape
    self._num_slices = num_slices
    self._trips = TripCounts(module)
    self._known: dict[str, Cost] = {}

  def cost(self, computation: Computation) -> Cost:
    if computation.name not in self._known:
      total = Cost()
      events = []
      origin: dict[str, str] = {}  # what an update carries on
      sent_bytes = 0.0  # of HBM, by collectives: not the device's work
      for instruction in computation:
        first, timelines = len(total.collectives), len(total.timelines)
        before = (total.flops, total.hbm_bytes - sent_bytes)
        self._add_instruction(total, instruction, computation)
        started = range(first, len(total.collectives))
        starts = started and (instruction.opcode.endswith("-start") or instruction.opcode in KINDS)
        if starts:
          sent_bytes = total.hbm_bytes - before[1]
        if starts and instruction.opcode not in KINDS:
          del total.timelines[timelines:]  # what it calls runs beside this computation
          events.append(Event(*before, instruction.name, started))
        elif instruction.opcode.endswith("-update") and instruction.operands:
          origin[instruction.name] = origin.get(instruction.operands[0], instruction.operands[0])
        elif instruction.opcode.endswith("-done"):
          events.append(Event(*before, needs=origin.get(instruction.operands[0], instruction.operands[0])))
        elif starts:
          events.append(Event(*before, instruction.name, started, instruction.name))
      if any(event.collectives for event in events):
        total.timelines.append(Timeline(tuple(events)))
      self._known[computation.name] = total
    return self._known[computation.name]

  def _add_instruction(self, total: Cost, instruction: Instruction, computation: Computation) -> None:
    calls = instruction.called()
    if instruction.opcode == "while":
      trips = self._trips.of(computation, instruction)
      if trips is None and UNBALANCED in instruction.op_name:
        total.unbalanced_rounds = True
        return
      if trips is None:
        total.data_dependent_loops.add(instruction.op_name or instruction.name)
      total.add(self._called(calls["body"][0]), 1 if trips is None else trips)
      return
    if instruction.opcode == "conditional":
      branches = [self._called(name) for names in calls.values() for name in names]
      total.add(max(branches, key=lambda cost: (cost.flops, cost.hbm_bytes)))
      return
    collective = read_collective(instruction, computation, self._mesh_shape, self._num_slices)
    if collective is not None:
      total.collectives.append(collective)
    flops = matmul_flops(instruction, computation)
    if flops is None:
      total.uncounted_kernels.add(instruction.name.split(".")[0])
    elif flops:
      total.flops += flops
      total.rematted_flops += flops if _REMATTED in instruction.op_name else 0.0
    total.hbm_bytes += instruction_traffic(instruction, computation, self._module)
    for name in (*calls.get("calls", ()), *calls.get("called_computations", ())):
      inner = self._called(name)
      inside_fusion = instruction.opcode == "fusion"  # keeps its intermediate values out of HBM
      total.add(dataclasses.replace(inner, hbm_bytes=0.0) if inside_fusion else inner)
    if instruction.opcode in ("call", "call-start", "async-start"):
      for name in calls.get("to_apply", ()):
        total.add(self._called(name))

  def _called(self, name: str) -> Cost:
    return self.cost(self._module.computations[name])
