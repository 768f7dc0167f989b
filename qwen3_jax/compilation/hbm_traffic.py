"""Bytes that an instruction reads from and writes to HBM."""

from __future__ import annotations

from qwen3_jax.compilation.hlo import HBM, Array, Computation, Instruction, Module

# These move nothing themselves: names for what is there, or wrappers whose contents are counted.
_FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast while conditional call call-start call-done async-start"
  " async-update async-done copy-done all-gather-done all-reduce-done collective-permute-done recv-done send-done"
  " after-all add-dependency optimization-barrier partition-id replica-id domain".split()
)


def instruction_traffic(instruction: Instruction, computation: Computation, module: Module) -> int:
  """Operands read plus results written, those in VMEM left out; a slice counts as the slice, not as its source.

  An upper estimate: what the compiler holds in VMEM without saying so in the layout counts as HBM.
  """
  if instruction.opcode in _FREE or 'custom_call_target="AllocateBuffer"' in instruction.attributes:
    return 0
  operands = [computation.instructions[name] for name in instruction.operands]
  if instruction.opcode == "fusion":
    return _fusion_traffic(instruction, operands, module.computations[instruction.called()["calls"][0]])
  if instruction.opcode in ("dynamic-slice", "gather", "slice"):
    return 2 * _in_hbm(instruction.shape)
  if instruction.opcode == "dynamic-update-slice":
    return 2 * _in_hbm(operands[1].shape)
  if instruction.opcode.endswith("-start"):  # the result holds the operands too
    return sum(_in_hbm(operand.shape) for operand in operands) + _in_hbm(instruction.shape[:1])
  return sum(_in_hbm(operand.shape) for operand in operands) + _in_hbm(instruction.shape)


def _fusion_traffic(fusion: Instruction, operands: list[Instruction], body: Computation) -> int:
  read = 0
  for index, operand in enumerate(operands):
    parameter = body.parameters.get(index)
    if parameter is not None:
      read += min(_in_hbm(operand.shape), _read_of(parameter, body))
  roots = [body.instructions[name] for name in body.root.operands] if body.root.opcode == "tuple" else [body.root]
  written = 0
  for array, root in zip(fusion.shape, roots):
    root = _through_bitcasts(root, body)
    updates = root.opcode == "dynamic-update-slice"
    written += _in_hbm(body.operand(root, 1).shape if updates and array.space == HBM else (array,))
  return read + written


def _read_of(parameter: Instruction, body: Computation) -> int:
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
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == source.name:
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
