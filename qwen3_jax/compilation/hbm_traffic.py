"""Bytes that an instruction reads from and writes to HBM."""

from __future__ import annotations

import re

from qwen3_jax.compilation.hlo import HBM, Array, Computation, Instruction, Module

# These move nothing themselves: names for what is there, or wrappers whose contents are counted.
_FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast while conditional call call-start call-done async-start"
  " async-update async-done copy-done all-gather-done all-reduce-done collective-permute-done recv-done send-done"
  " after-all add-dependency optimization-barrier partition-id replica-id domain".split()
)

_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place: the operand that is written
_BYTES_ACCESSED = re.compile(r'"bytes_accessed":"(\d+)"')


def instruction_traffic(instruction: Instruction, computation: Computation, module: Module) -> int:
  """Operands read plus results written, those in VMEM left out.

  A slice counts as the slice, not as its source; a kernel as what it says it reads and writes, if that is less.

  An upper estimate: what the compiler holds in VMEM without saying so in the layout counts as HBM.
  """
  if instruction.opcode in _FREE or 'custom_call_target="AllocateBuffer"' in instruction.attributes:
    return 0
  operands = [computation.instructions[name] for name in instruction.operands]
  if instruction.opcode == "fusion":
    return _fusion_traffic(instruction, operands, module)
  if instruction.opcode in ("dynamic-slice", "gather", "slice"):
    return 2 * _in_hbm(instruction.shape)
  if instruction.opcode == "dynamic-update-slice":
    return 2 * _in_hbm(operands[1].shape)
  if instruction.opcode == "scatter":
    return _in_hbm(operands[1].shape) + 2 * _in_hbm(operands[2].shape)
  if instruction.opcode == "slice-start":  # the result holds the source, then the slice
    return instruction.shape[1].bytes + _in_hbm(instruction.shape[1:2])
  if instruction.opcode.endswith("-start"):  # the result holds the operands too
    return sum(_in_hbm(operand.shape) for operand in operands) + _in_hbm(instruction.shape[:1])
  everything = sum(_in_hbm(operand.shape) for operand in operands) + _in_hbm(instruction.shape)
  stated = _BYTES_ACCESSED.search(instruction.backend_config) if instruction.opcode == "custom-call" else None
  return min(everything, int(stated[1])) if stated else everything


def _fusion_traffic(fusion: Instruction, operands: list[Instruction], module: Module) -> int:
  body = module.computations[fusion.called()["calls"][0]]
  read = 0
  for index, operand in enumerate(operands):
    parameter = body.parameters.get(index)
    if parameter is not None:
      read += min(_in_hbm(operand.shape), _read_of(parameter, body, module))
  roots = [body.instructions[name] for name in body.root.operands] if body.root.opcode == "tuple" else [body.root]
  written = 0
  for array, root in zip(fusion.shape, roots):
    root = _through_bitcasts(root, body)
    part = _UPDATES.get(root.opcode)
    written += _in_hbm(body.operand(root, part).shape if part and array.space == HBM else (array,))
  return read + written


def _read_of(parameter: Instruction, body: Computation, module: Module) -> int:
  """Bytes of a fusion's parameter that are read: all, or only slices of it."""
  read = 0
  pending = [parameter]
  while pending:
    source = pending.pop()
    for user in body:
      if source.name not in user.operands:
        continue
      if user.opcode == "bitcast":
        pending.append(user)
      elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == source.name:
        read += user.bytes
      elif user.opcode == "fusion":
        inner = module.computations[user.called()["calls"][0]]
        places = (inner.parameters.get(i) for i, name in enumerate(user.operands) if name == source.name)
        read += sum(_read_of(place, inner, module) for place in places if place is not None)
      elif user.opcode in _UPDATES and user.operands[0] == source.name:
        continue  # updated in place
      else:
        return source.bytes
  return read


def _through_bitcasts(instruction: Instruction, body: Computation) -> Instruction:
  while instruction.opcode == "bitcast":
    instruction = body.operand(instruction, 0)
  return instruction


def _in_hbm(shape: tuple[Array, ...]) -> int:
  return sum(array.bytes for array in shape if array.space == HBM)
