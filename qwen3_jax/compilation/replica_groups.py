"""Which devices a collective joins, and what that is in terms of the mesh."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

OTHER = "other"  # a group that is no product of whole mesh axes

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[((?:,?\s*'?[\w.]+'?=\d+)+)\]?(?:,?\s*device_ids=\((.*?)\))?\]?\s*\{([^}]*)\}")
_AXIS = re.compile(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?")


def parse_replica_groups(attributes: str, partitions: int) -> np.ndarray | None:
  """The `replica_groups` of an instruction as int [groups, members]; None when it has none.

  Reads the four forms that XLA prints: `{{0,2},{1,3}}`, `{}` (one group of all), iota `[2,2]<=[2,2]T(1,0)` and
  `mesh['a'=2,'b'=2] {'a'}`, where axes may be split (`'a':(1)2`) and devices reordered (`device_ids=([2,2]T(1,0))`).
  """
  start = attributes.find("replica_groups=")
  if start < 0:
    return None
  text = attributes[start + len("replica_groups=") :]
  if text.startswith("mesh["):
    return _mesh_groups(text)
  if found := _IOTA.match(text):
    return _iota(found)
  if text.startswith("{{"):
    groups = re.findall(r"\{([\d,]+)\}", text[: text.index("}}") + 1])
    return np.array([[int(member) for member in group.split(",")] for group in groups])
  if text.startswith("{}"):
    return np.arange(partitions)[None]
  raise ValueError(f"replica_groups in an unknown form: {text[:200]!r}")


def parse_pairs(attributes: str) -> np.ndarray | None:
  """The `source_target_pairs` of a collective-permute as int [pairs, 2]; None when it has none."""
  found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
  if found is None:
    return None
  return np.array([[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1])]).reshape(-1, 2)


def axes_of_groups(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> str:
  """`fsdp` or `fsdp+expert` when the groups are exactly those of these mesh axes, else `other`.

  A partition's number is its place in `mesh.devices.flat`.
  """
  sizes = list(mesh_shape.values())
  places = np.stack(np.unravel_index(groups, sizes), axis=-1)  # [groups, members, axes]
  varies = (places != places[:, :1]).any(axis=1)
  if not (varies == varies[0]).all():
    return OTHER
  joined = [axis for axis, several in zip(mesh_shape, varies[0]) if several]
  members = int(np.prod([mesh_shape[axis] for axis in joined]))
  distinct = all(len(set(group)) == members for group in groups.tolist())
  return "+".join(joined) if groups.shape[1] == members and distinct else OTHER


def axes_of_pairs(pairs: np.ndarray, mesh_shape: Mapping[str, int]) -> str:
  """The mesh axes along which anything is sent; `other` when nothing is."""
  places = np.stack(np.unravel_index(pairs, list(mesh_shape.values())), axis=-1)  # [pairs, 2, axes]
  moves = (places[:, 0] != places[:, 1]).any(axis=0)
  return "+".join(axis for axis, moved in zip(mesh_shape, moves) if moved) or OTHER


def _iota(found: re.Match[str]) -> np.ndarray:
  shape, reshape = (tuple(map(int, found[index].split(","))) for index in (1, 2))
  order = tuple(map(int, found[3].split(","))) if found[3] else None
  return np.arange(np.prod(reshape)).reshape(reshape).transpose(order).reshape(shape)


def _mesh_groups(text: str) -> np.ndarray:
  found = _MESH.match(text)
  if found is None:
    raise ValueError(f"replica_groups in an unknown form: {text[:200]!r}")
  names, sizes = zip(*((name, int(size)) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", found[1])))
  devices = np.arange(np.prod(sizes))
  if transposed := re.fullmatch(r"\[([\d,]+)\]T\(([\d,]+)\)", found[2] or ""):
    reshape, order = (tuple(map(int, part.split(","))) for part in transposed.groups())
    devices = devices.reshape(reshape).transpose(order).reshape(-1)
  elif found[2]:
    devices = np.array([int(device) for device in re.findall(r"\d+", found[2])])
  # Every split of an axis makes it several axes; those named form the groups.
  grouped: dict[str, set[tuple[int, int]]] = {name: set() for name in names}
  for name, before, size in _AXIS.findall(found[3]):
    grouped[name].add((int(before), int(size)) if size else (1, sizes[names.index(name)]))
  shape: list[int] = []
  joined: list[int] = []
  for name, total in zip(names, sizes):
    covered = 1
    for before, size in sorted(grouped[name]):
      shape.append(before // covered)
      joined.append(len(shape))
      shape.append(size)
      covered = before * size
    shape.append(total // covered)
  kept = [axis for axis in range(len(shape)) if axis not in joined]
  members = int(np.prod([shape[axis] for axis in joined]))
  return devices.reshape(shape).transpose(kept + joined).reshape(-1, members)


def group_of_axes(axes: Sequence[str], mesh_shape: Mapping[str, int]) -> tuple[int, ...]:
  """The first group of these mesh axes: partitions that differ along them alone."""
  everyone = np.arange(np.prod(list(mesh_shape.values()))).reshape(list(mesh_shape.values()))
  here = tuple(slice(None) if axis in axes else 0 for axis in mesh_shape)
  return tuple(everyone[here].reshape(-1).tolist())
