"""Which buffers are alive at once in a scheduled program, replayed from its optimised HLO."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

from qwen3_jax.compilation.hlo import HBM, Array, Computation, Instruction, Module

_SAME_BUFFER = frozenset(["bitcast", "optimization-barrier", "add-dependency"])
_ALIASES = re.compile(r"\{([\d, ]*)\}: \((\d+), \{[\d, ]*\}")

Value = tuple[str, int]  # an instruction, and a leaf of its shape


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array in HBM that a program allocates for itself; arguments are none."""

  array: Array
  source: Instruction  # what first writes it
  written_by: str  # JAX's scope of the last instruction that writes into it


@dataclasses.dataclass(frozen=True)
class Peak:
  bytes: int
  buffers: tuple[Buffer, ...]


def simulated_peak(module: Module, aliased_outputs: Iterable[int]) -> Peak:
  """The fullest moment of the schedule, arguments left out.

  `aliased_outputs`: outputs that take the buffers of donated arguments. A replay without the compiler's placement:
  no fragmentation, no buffers shared where lifetimes only touch.
  """
  return _Replay(module).peak(module.entry, frozenset(aliased_outputs))


def aliased_outputs(hlo_text: str) -> list[int]:
  """Outputs that the module's first line says share an argument's buffer."""
  header = hlo_text[: hlo_text.index("\n")]
  start = header.find("input_output_alias={")
  if start < 0:
    return []
  section = header[start : header.index("entry_computation_layout", start)]
  return [int(output) for output, _ in _ALIASES.findall(section) if output.strip().isdecimal()]


class _Replay:
  def __init__(self, module: Module):
    self._module = module
    self._peaks: dict[str, Peak] = {}

  def peak(self, computation: Computation, aliased: frozenset[int] = frozenset()) -> Peak:
    if computation.name not in self._peaks:
      self._peaks[computation.name] = self._replay(computation, aliased)
    return self._peaks[computation.name]

  def _replay(self, computation: Computation, aliased: frozenset[int]) -> Peak:
    origins = _Origins(computation, self._module)
    root = computation.root
    elsewhere = {origins.of(root.name, leaf) for leaf in aliased}
    order = list(computation)
    last_use: dict[Value, int] = {}
    writer: dict[Value, str] = {}
    for moment, instruction in enumerate(order):
      for name in instruction.operands:
        for leaf in _read_leaves(instruction, computation.instructions[name]):
          last_use[origins.of(name, leaf)] = moment
      for leaf in range(len(instruction.shape)):
        value = origins.of(instruction.name, leaf)
        last_use[value] = max(moment, last_use.get(value, 0))
        if instruction.opcode not in _SAME_BUFFER and instruction.opcode not in ("tuple", "get-tuple-element"):
          writer[value] = instruction.op_name
    for leaf in range(len(root.shape)):
      last_use[origins.of(root.name, leaf)] = len(order)

    ending: dict[int, list[Value]] = {}
    live: dict[Value, Buffer] = {}
    size, best = 0, Peak(0, ())
    for moment, instruction in enumerate(order):
      for leaf, array in enumerate(instruction.shape):
        value = (instruction.name, leaf)
        own = origins.of(*value) == value and value not in elsewhere
        if own and array.space == HBM and instruction.opcode not in ("parameter", "constant"):
          live[value] = Buffer(array, instruction, writer.get(value, ""))
          size += array.padded_bytes
          ending.setdefault(last_use[value], []).append(value)
      inner = max(self._inside(instruction), key=lambda peak: peak.bytes, default=Peak(0, ()))
      if size + inner.bytes > best.bytes:
        best = Peak(size + inner.bytes, (*live.values(), *inner.buffers))
      for value in ending.pop(moment, ()):
        size -= live.pop(value).array.padded_bytes
    return best

  def _inside(self, instruction: Instruction) -> Iterator[Peak]:
    if instruction.opcode in ("while", "conditional", "call"):
      for kind, names in instruction.called().items():
        if kind != "condition":
          yield from (self.peak(self._module.computations[name]) for name in names)


def _read_leaves(instruction: Instruction, operand: Instruction) -> Iterable[int]:
  """The leaves of an operand that an instruction reads."""
  if instruction.opcode == "get-tuple-element" and len(instruction.shape) == 1 < len(operand.shape):
    return (instruction.tuple_index,)
  return range(len(operand.shape))


class _Origins:
  """Which value owns the buffer that a value lies in, within one computation."""

  def __init__(self, computation: Computation, module: Module):
    self._computation = computation
    self._module = module
    self._known: dict[Value, Value] = {}

  def of(self, name: str, leaf: int) -> Value:
    value = (name, leaf)
    if value not in self._known:
      source = self._source(self._computation.instructions[name], leaf)
      self._known[value] = value if source is None else self.of(*source)
    return self._known[value]

  def _source(self, instruction: Instruction, leaf: int) -> Value | None:
    """The value whose buffer this one shares, or None when it has its own."""
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "tuple":
      for name in operands:
        leaves = len(self._computation.instructions[name].shape)
        if leaf < leaves:
          return name, leaf
        leaf -= leaves
    if opcode == "get-tuple-element":
      source = self._computation.instructions[operands[0]]
      index = instruction.tuple_index
      return (source.name, index) if len(instruction.shape) == 1 and index < len(source.shape) else None
    if opcode in _SAME_BUFFER or opcode == "while":
      return operands[0], leaf
    if opcode == "dynamic-update-slice":
      return operands[0], 0
    if opcode == "copy-start":  # (copy, source, context)
      return (operands[0], 0) if leaf == 1 else None
    if opcode == "send":
      return (operands[0], 0) if leaf == 0 else None
    if opcode.endswith("-start") and len(instruction.shape) > len(operands):  # (operands, results, contexts)
      return (operands[leaf], 0) if leaf < len(operands) else None
    if opcode.endswith("-done"):
      return self._started(instruction, leaf)
    if opcode == "fusion":
      return self._updated_in_place(instruction, leaf)
    if opcode == "custom-call" and "output_to_operand_aliasing" in instruction.attributes:
      for output, operand in _ALIASES.findall(instruction.attributes):
        if int(output.strip() or 0) == leaf and int(operand) < len(operands):
          return operands[int(operand)], 0
    return None

  def _started(self, done: Instruction, leaf: int) -> Value | None:
    start = self._computation.instructions[done.operands[0]]
    if len(start.shape) == len(done.shape):
      return start.name, leaf
    if done.opcode == "copy-done":
      return start.name, 0
    like = [i for i, array in enumerate(start.shape) if array.dims == done.shape[leaf].dims]
    return (start.name, like[-1]) if like else None

  def _updated_in_place(self, fusion: Instruction, leaf: int) -> Value | None:
    body = self._module.computations[fusion.called()["calls"][0]]
    root = body.operand(body.root, leaf) if body.root.opcode == "tuple" else body.root
    while root.opcode == "bitcast":
      root = body.operand(root, 0)
    if root.opcode != "dynamic-update-slice":
      return None
    target = body.operand(root, 0)
    while target.opcode == "bitcast":
      target = body.operand(target, 0)
    return (fusion.operands[int(target.literal)], 0) if target.opcode == "parameter" else None
