"""How often the loops of a compiled program run, from their conditions and what their bodies add to the counter."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from qwen3_jax.compilation.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_COPIES = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Affine:
  """`element` of the loop's tuple plus `offset`; a constant when element is None."""

  element: int | None
  offset: int


class TripCounts:
  """Trip counts of the loops of one module."""

  def __init__(self, module: Module):
    self._module = module
    self._loops: dict[str, tuple[Computation, Instruction]] = {}  # body -> where its loop stands
    for computation in module.computations.values():
      for instruction in computation:
        if instruction.opcode == "while":
          self._loops[instruction.called()["body"][0]] = (computation, instruction)

  def of(self, computation: Computation, loop: Instruction) -> int | None:
    """Iterations of `loop`, a while in `computation`; None when they depend on data."""
    if known := _KNOWN.search(loop.backend_config + loop.attributes):
      return int(known[1])
    calls = loop.called()
    body = self._module.computations[calls["body"][0]]
    comparison = self._comparison(self._module.computations[calls["condition"][0]])
    if comparison is None:
      return None
    direction, left, right = comparison
    if left.element is None:
      left, right = right, left
      direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if left.element is None:
      return None
    limit = self._element(computation, loop, right.element) if right.element is not None else 0
    start = self._element(computation, loop, left.element)
    step = self._affine(body, body.root.operands[left.element], {})
    if limit is None or start is None or step is None or step.element != left.element or step.offset == 0:
      return None
    distance = limit + right.offset - start - left.offset
    if direction in ("LE", "GE"):
      distance += 1 if direction == "LE" else -1
    if direction not in ("LT", "LE", "GT", "GE", "NE") or distance * step.offset < 0:
      return 0 if distance * step.offset < 0 else None
    return math.ceil(distance / step.offset)

  def _comparison(self, condition: Computation) -> tuple[str, Affine, Affine] | None:
    root, scope = condition.root, condition
    within: dict[int, Affine | None] = {}
    while root.opcode == "fusion":
      within = self._arguments(scope, root, within)
      scope = self._module.computations[root.called()["calls"][0]]
      root = scope.root
    direction = root.attribute("direction")
    if root.opcode != "compare" or direction is None:
      return None
    left, right = (self._affine(scope, operand, within) for operand in root.operands)
    return None if left is None or right is None else (direction, left, right)

  def _affine(self, scope: Computation, name: str, arguments: Mapping[int, Affine | None]) -> Affine | None:
    """The value of an integer scalar in terms of the loop's tuple. `arguments`: those of the fusion `scope` is."""
    instruction = scope.instructions[name]
    if instruction.opcode == "constant":
      return Affine(None, int(instruction.literal)) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if instruction.opcode in _COPIES:
      return self._affine(scope, instruction.operands[0], arguments)
    if instruction.opcode == "parameter":
      return arguments.get(int(instruction.literal))
    if instruction.opcode == "get-tuple-element":
      source = scope.operand(instruction, 0)
      if source.opcode == "parameter" and not arguments:
        return Affine(instruction.tuple_index, 0)
      return None
    if instruction.opcode in ("add", "subtract"):
      left, right = (self._affine(scope, operand, arguments) for operand in instruction.operands)
      if left is None or right is None or (left.element is not None and right.element is not None):
        return None
      if instruction.opcode == "subtract":
        return None if right.element is not None else Affine(left.element, left.offset - right.offset)
      return Affine(right.element if left.element is None else left.element, left.offset + right.offset)
    if instruction.opcode == "fusion":
      called = self._module.computations[instruction.called()["calls"][0]]
      return self._affine(called, called.root.name, self._arguments(scope, instruction, arguments))
    return None

  def _arguments(
    self, scope: Computation, fusion: Instruction, arguments: Mapping[int, Affine | None]
  ) -> dict[int, Affine | None]:
    return {index: self._affine(scope, name, arguments) for index, name in enumerate(fusion.operands)}

  def _element(self, scope: Computation, loop: Instruction, element: int) -> int | None:
    """What `element` of the tuple is when `loop` starts, if that is a constant."""
    initial = scope.operand(loop, 0)
    return self._constant(scope, initial.operands[element]) if initial.opcode == "tuple" else None

  def _constant(self, scope: Computation, name: str) -> int | None:
    instruction = scope.instructions[name]
    if instruction.opcode != "get-tuple-element":
      value = self._affine(scope, name, {})
      return value.offset if value is not None and value.element is None else None
    source, element = scope.operand(instruction, 0), instruction.tuple_index
    if source.opcode == "while":
      return self._unchanged(scope, source, element)
    if source.opcode == "parameter" and scope.name in self._loops:
      return self._unchanged(*self._loops[scope.name], element)
    return None

  def _unchanged(self, scope: Computation, loop: Instruction, element: int) -> int | None:
    """A constant that goes through `loop` as it is."""
    body = self._module.computations[loop.called()["body"][0]]
    after = self._affine(body, body.root.operands[element], {}) if body.root.opcode == "tuple" else None
    return self._element(scope, loop, element) if after == Affine(element, 0) else None
