"""A reader of XLA's HLO text: computations, instructions, shapes. Keeps what the compile report needs."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

HBM, VMEM, HOST = 0, 1, 5  # memory spaces in a TPU layout: S(n), none for HBM

_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LISTS = re.compile(r"\b(branch_computations|called_computations)=\{([^}]*)\}")
_REFERENCE = re.compile(r"%?([\w.\-]+)$")


@dataclasses.dataclass(frozen=True)
class Array:
  """Shape and layout of one array on one device."""

  dtype: str
  dims: tuple[int, ...]
  minor_to_major: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = HBM

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Without the padding of tiles: what a network or an algorithm moves."""
    return math.ceil(self.elements * element_bits(self.dtype) / 8)

  @property
  def padded_bytes(self) -> int:
    """What it takes in memory: the minor axes padded to whole tiles."""
    physical = [self.dims[axis] for axis in reversed(self.minor_to_major)] if self.minor_to_major else list(self.dims)
    for offset in range(1, min(len(self.tile), len(physical)) + 1):
      physical[-offset] = math.ceil(physical[-offset] / self.tile[-offset]) * self.tile[-offset]
    return math.ceil(math.prod(physical) * element_bits(self.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  shape: tuple[Array, ...]  # leaves of a tuple in order; a single one for an array
  is_tuple: bool
  opcode: str
  operands: tuple[str, ...]
  attributes: str  # after the operands, without backend_config
  backend_config: str  # kept for loops and custom calls only
  literal: str = ""  # what stands in the parentheses of a constant, parameter or iota

  @property
  def op_name(self) -> str:
    """JAX's path of named scopes."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  @property
  def bytes(self) -> int:
    return sum(array.bytes for array in self.shape)

  def attribute(self, name: str) -> str | None:
    """The raw text of `name=...` up to the next attribute."""
    found = re.search(rf"\b{name}=((?:\{{.*?\}}(?=,|$|\s)|[^,\s]+))", self.attributes)
    return found[1] if found else None

  @property
  def tuple_index(self) -> int:
    """Which leaf a get-tuple-element reads."""
    return int(self.attribute("index") or 0)

  def called(self) -> dict[str, list[str]]:
    """Names of called computations by the attribute that names them."""
    calls: dict[str, list[str]] = {}
    for kind, name in _CALLED.findall(self.attributes):
      calls.setdefault(kind, []).append(name)
    for kind, names in _CALLED_LISTS.findall(self.attributes):
      calls.setdefault(kind, []).extend(name.strip().lstrip("%") for name in names.split(","))
    return calls


@dataclasses.dataclass(frozen=True)
class Computation:
  name: str
  instructions: dict[str, Instruction]  # in the order of the schedule
  root: Instruction

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  def operand(self, instruction: Instruction, index: int) -> Instruction:
    return self.instructions[instruction.operands[index]]

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    return {int(x.literal): x for x in self if x.opcode == "parameter"}


@dataclasses.dataclass(frozen=True)
class Module:
  computations: dict[str, Computation]
  entry: Computation


def element_bits(dtype: str) -> int:
  """Bits of one element as stored; 0 for token and opaque."""
  if dtype == "pred":
    return 8
  found = re.match(r"[a-z]+(\d+)", dtype)
  return int(found[1]) if found else 0


def parse_module(text: str) -> Module:
  """The module that `compiled.as_text()` prints. Raises ValueError when there is no entry computation."""
  computations: dict[str, Computation] = {}
  entry: Computation | None = None
  lines = iter(text.splitlines())
  for line in lines:
    if not line.endswith("{") or line[:1].isspace() or "->" not in line:
      continue
    is_entry = line.startswith("ENTRY")
    name = line.removeprefix("ENTRY").split("(", 1)[0].strip().lstrip("%")
    computation = _parse_computation(name, lines)
    computations[name] = computation
    if is_entry:
      entry = computation
  if entry is None:
    raise ValueError("HLO text without an ENTRY computation")
  return Module(computations, entry)


def _parse_computation(name: str, lines: Iterator[str]) -> Computation:
  instructions: dict[str, Instruction] = {}
  root = None
  for line in lines:
    line = line.strip()
    if line.startswith("}"):
      break
    if " = " not in line:
      continue
    is_root = line.startswith("ROOT ")
    instruction = parse_instruction(line.removeprefix("ROOT "))
    instructions[instruction.name] = instruction
    if is_root:
      root = instruction
  if root is None:
    raise ValueError(f"HLO computation {name!r} without a ROOT")
  return Computation(name, instructions, root)


def parse_instruction(line: str) -> Instruction:
  """One line, without `ROOT`."""
  name, _, rest = line.partition(" = ")
  is_tuple = rest.startswith("(")
  end = _closing(rest, 0) + 1 if is_tuple else rest.index(" ")
  shape_text, rest = rest[:end], rest[end:].lstrip()
  opening = rest.index("(")
  closing = _closing(rest, opening)
  opcode, inside, rest = rest[:opening], rest[opening + 1 : closing], rest[closing + 1 :].lstrip(", ")
  attributes, _, backend_config = rest.partition("backend_config=")
  has_operands = opcode not in ("constant", "parameter", "iota")
  return Instruction(
    name=name.strip().lstrip("%"),
    shape=parse_shape(shape_text),
    is_tuple=is_tuple,
    opcode=opcode,
    operands=tuple(_operands(inside)) if has_operands else (),
    attributes=attributes.rstrip(", "),
    backend_config=backend_config if opcode in ("while", "custom-call") else "",
    literal="" if has_operands else inside,
  )


@functools.lru_cache(maxsize=65536)
def parse_shape(text: str) -> tuple[Array, ...]:
  """Arrays of a shape in order, tuples flattened: `bf16[6,512]{1,0:T(8,128)(2,1)S(1)}`."""
  arrays = []
  for dtype, dims, layout in _ARRAY.findall(text):
    order, _, rest = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    arrays.append(
      Array(
        dtype,
        tuple(int(size.lstrip("<=")) for size in dims.split(",") if size),
        tuple(int(axis) for axis in order.split(",") if axis),
        tuple(map(int, tile[1].split(","))) if tile else (),
        int(space[1]) if space else HBM,
      )
    )
  return tuple(arrays)


def _closing(text: str, opening: int) -> int:
  """Index of the parenthesis that closes the one at `opening`."""
  depth = 0
  for index in range(opening, len(text)):
    if text[index] == "(":
      depth += 1
    elif text[index] == ")":
      depth -= 1
      if depth == 0:
        return index
  raise ValueError(f"unbalanced parentheses in HLO: {text[:200]!r}")


def _operands(text: str) -> Iterator[str]:
  """Names in `%a, /*index=5*/%b`, with or without the operands' shapes before them."""
  depth = 0
  start = 0
  for index, character in enumerate(text + ","):
    if character in "([{":
      depth += 1
    elif character in ")]}":
      depth -= 1
    elif character == "," and depth == 0:
      found = _REFERENCE.search(text[start:index].strip())
      if found:
        yield found[1]
      start = index + 1
