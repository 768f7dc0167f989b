"""What a compiled program sends over the network: kind, mesh axes, bytes and the time of an ideal ring."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qwen3_jax.compilation.chips import ON_CHIP_LINKS
from qwen3_jax.compilation.hlo import Computation, Instruction
from qwen3_jax.compilation.replica_groups import axes_of_groups, axes_of_pairs, parse_pairs, parse_replica_groups
from qwen3_jax.compilation.topologies import Topology

if TYPE_CHECKING:
  import jax

ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE = "all-gather", "reduce-scatter", "all-reduce"
ALL_TO_ALL, RAGGED_ALL_TO_ALL, PERMUTE = "all-to-all", "ragged-all-to-all", "collective-permute"
KINDS = (ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE, ALL_TO_ALL, RAGGED_ALL_TO_ALL, PERMUTE)
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_EXCHANGES = (ALL_TO_ALL, RAGGED_ALL_TO_ALL)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction, executed once for every iteration of the loops around it."""

  kind: str
  dtype: str
  axes: str  # mesh axes joined by "+", or "other"
  group: tuple[int, ...]  # places in the mesh of one group; of a permute, one sender and its receiver
  payload: int  # bytes on one device: the larger of what goes in and what comes out
  loops: tuple[int, ...] = ()  # iterations of the loops around it, outermost first
  scope: str = ""  # JAX's name of where it comes from

  @property
  def count(self) -> int:
    return int(np.prod(self.loops, dtype=np.int64))

  @property
  def network_bytes(self) -> float:
    """Bytes that each device sends in one execution."""
    return ring_bytes(self.kind, self.payload, len(self.group))


def ring_bytes(kind: str, payload: int, members: int) -> float:
  """Bytes that each of `members` sends when a collective is done the cheapest way.

  `payload` is the output of an all-gather, the input of everything else. A ragged all-to-all is taken to send all its
  rows but an even share that stays.
  """
  if members < 2:
    return 0.0
  if kind == PERMUTE:
    return float(payload)
  return payload * (members - 1) / members * (2 if kind == ALL_REDUCE else 1)


def read_collective(
  instruction: Instruction, computation: Computation, mesh_shape: Mapping[str, int], num_slices: int = 1
) -> Collective | None:
  """The collective that `instruction` is or starts; None for anything else and for groups of one device.

  `mesh_shape`: of one slice; a program numbers the partitions of its own slice only.
  """
  if between := _BETWEEN_SLICES.search(instruction.attributes):
    return _between_slices(instruction, computation, between[1], mesh_shape, num_slices)
  kind = instruction.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  inputs = [computation.instructions[name] for name in instruction.operands]
  payload = sum(operand.bytes for operand in inputs)
  if kind == RAGGED_ALL_TO_ALL:  # one side is the rows, the other a buffer with room to spare; then offsets and sizes
    payload = min(inputs[0].bytes, instruction.bytes)
  if kind == ALL_REDUCE and _is_scattered(instruction, computation):
    kind = REDUCE_SCATTER
  pairs = parse_pairs(instruction.attributes)
  if pairs is not None:
    if not len(pairs) or (pairs[:, 0] == pairs[:, 1]).all():
      return None
    axes = axes_of_pairs(pairs, mesh_shape)
    group = pairs[(pairs[:, 0] != pairs[:, 1]).argmax()]
  else:
    groups = parse_replica_groups(instruction.attributes, int(np.prod(list(mesh_shape.values()))))
    if groups is None or groups.shape[1] < 2:
      return None
    axes = axes_of_groups(groups, mesh_shape)
    group = groups[0]
  if kind == ALL_GATHER:
    payload *= len(group)
  dtype = inputs[0].shape[0].dtype
  return Collective(kind, dtype, axes, tuple(group.tolist()), payload, scope=instruction.op_name)


def _between_slices(
  instruction: Instruction, computation: Computation, transfer: str, mesh_shape: Mapping[str, int], num_slices: int
) -> Collective | None:
  """What the host sends over the data-centre network for the device: along `data`, which joins the slices."""
  if instruction.opcode != "send":  # the receiving end names the transfer too
    return None
  operand = computation.operand(instruction, 0)
  kind = transfer.lower().replace("_", "-")
  payload = operand.bytes * (num_slices if kind == ALL_GATHER else 1)
  per_slice = int(np.prod(list(mesh_shape.values())))
  group = tuple(index * per_slice for index in range(num_slices))
  kind = kind if kind in KINDS else PERMUTE
  return Collective(kind, operand.shape[0].dtype, "data", group, payload, scope=instruction.op_name)


def _is_scattered(instruction: Instruction, computation: Computation) -> bool:
  """Whether each device keeps only its slice: the TPU compiler writes reduce-scatter as a fusion of the two."""
  root = computation.root
  while root.opcode in ("bitcast", "copy", "convert"):
    root = computation.operand(root, 0)
  return root.opcode == "dynamic-slice" and computation.operand(root, 0) is instruction


class Network:
  """Bandwidths between the devices of a mesh on a topology."""

  def __init__(self, topology: Topology, devices: Sequence[jax.Device]):
    """`devices`: those of the mesh, flat: a partition's number is its place."""
    self._topology = topology
    self._places = np.array([[*device.coords, getattr(device, "slice_index", None) or 0] for device in devices])

  def seconds(self, collective: Collective) -> float:
    """Time of one execution, alone on the network and at full bandwidth."""
    bandwidth, hops = self._paths(collective.group)
    return collective.network_bytes * (hops if collective.kind in _EXCHANGES else 1.0) / bandwidth

  def sides(self, collective: Collective) -> tuple[int, ...]:
    """The sides of the torus that a group covers, and one more if it covers several slices."""
    places = self._places[list(collective.group)]
    return tuple(side for side in range(places.shape[1]) if len(set(places[:, side])) > 1)

  def crosses_slices(self, collective: Collective) -> bool:
    return self._places.shape[1] - 1 in self.sides(collective)

  def _paths(self, group: Sequence[int]) -> tuple[float, float]:
    """Bytes per second that a device can send within its group, and links that data crosses between two members.

    Along each side of the torus that a group covers, a device sends both ways if the side closes to a ring, else
    counts as one way. The links of a chip are shared by its devices.
    """
    chip = self._topology.chip
    places = self._places[list(group)]
    if len(set(places[:, -1])) > 1:
      return chip.dcn_bandwidth / chip.devices_per_chip, 1.0
    links, hops = 0, 0.0
    for dimension, side in enumerate(self._topology.shape):
      extent = len(set(places[:, dimension]))
      if extent == 1:
        continue
      ring = extent == side and self._topology.wraps(dimension)
      links += 2 if ring else 1
      hops += extent / 4 if ring else extent / 3
    if not links:
      return ON_CHIP_LINKS * chip.link_bandwidth, 1.0
    return links * chip.link_bandwidth / chip.devices_per_chip, max(hops, 1.0)
