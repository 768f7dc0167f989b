"""The device mesh, and one table from the logical names of axes to mesh axes."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen3_jax.models.config import ModelConfig

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")  # a batch is split over all of these
TOKEN_AXES = (*BATCH_AXES, "context")  # and its tokens over these
PARAMETER_AXES = TOKEN_AXES[1:]  # parameters are split over these, too, and gathered where they are used

# Logical name -> mesh axes that split it. Parameters use the names of their axes; activations "batch" and "length".
RULES: dict[str, tuple[str, ...]] = {
  "batch": BATCH_AXES,
  "length": ("context",),
  "layers": (),
  "embed": PARAMETER_AXES,
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "head_dim": (),
  "attended": ("tensor", *PARAMETER_AXES),  # what all heads give, N * H: rows are cheaper to gather than columns
  "hidden": (),  # the hidden axis of a matrix whose other axis is split over fsdp
  "mlp": ("tensor",),
  "experts": ("expert",),
  "expert_mlp": ("tensor",),  # the feed-forward axis of experts' matrices
  "expert_embed": ("fsdp", "context"),  # the hidden axis of experts' matrices
  "choices": (),  # the experts a router chooses from
  "vocab": ("tensor",),
}
# When decoding, a parameter stays whole or split where it is used: gathering it for a few tokens would take longer than
# all else. Heads, feed-forward and vocabulary lie over `tensor`, whole experts over `expert` and `tensor`; the rest is
# copied.
DECODING_RULES: dict[str, tuple[str, ...]] = {
  **RULES,
  "embed": (),
  "attended": ("tensor",),
  "experts": ("expert", "tensor"),
  "expert_mlp": (),
  "expert_embed": (),
}
_rules = contextvars.ContextVar("rules", default=RULES)


@contextlib.contextmanager
def decoding() -> Iterator[None]:
  """What is traced within follows DECODING_RULES."""
  token = _rules.set(DECODING_RULES)
  try:
    yield
  finally:
    _rules.reset(token)


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh over `devices` (all of them unless given); one axis may be -1: whatever is left.

  Several slices are joined along `data`, the only axis whose traffic then goes over the data-centre network.
  Raises ValueError when the axes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  unknown = sorted(set(shape) - set(MESH_AXES))
  if unknown:
    raise ValueError(f"mesh: unknown axes {', '.join(unknown)}; known: {', '.join(MESH_AXES)}")
  sizes = [int(shape.get(axis, 1)) for axis in MESH_AXES]
  written = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(f"mesh ({written}): sizes must be positive, and at most one may be -1")
  known = int(np.prod([size for size in sizes if size != -1]))
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(len(devices) // known, 1)
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(f"mesh ({written}) does not fit {len(devices)} devices")
  slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
  if sizes[0] % slices:
    raise ValueError(f"mesh ({written}): data must be a multiple of the {slices} slices, which it joins")
  split = True  # an axis may cover a part of a side of the torus
  if slices == 1:
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=split)
  else:
    within, across = [sizes[0] // slices, *sizes[1:]], [slices, *(1 for _ in sizes[1:])]
    placed = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=split)
  return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition_spec(names: Sequence[str], rules: Mapping[str, tuple[str, ...]] | None = None) -> P:
  """Logical names of an array's axes -> PartitionSpec, by the rules in use unless given.

  Raises ValueError if a mesh axis would split two of them.
  """
  rules = _rules.get() if rules is None else rules
  used: dict[str, str] = {}
  entries: list[Any] = []
  for name in names:
    if name not in rules:
      raise ValueError(f"Unknown logical axis {name!r}; known: {', '.join(rules)}")
    for axis in rules[name]:
      if axis in used:
        raise ValueError(f"Axes {tuple(names)}: mesh axis {axis!r} would split both {used[axis]!r} and {name!r}")
      used[axis] = name
    entries.append(rules[name] if len(rules[name]) > 1 else rules[name][0] if rules[name] else None)
  return P(*entries)


def array_spec(names: Sequence[str], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
  """PartitionSpec of a parameter, or of a slice of one; an axis that its mesh axes do not divide stays whole."""
  return _splitting(partition_spec(names), shape, mesh)


def entry_axes(entry: Any) -> tuple[str, ...]:
  """The mesh axes that an entry of a PartitionSpec names."""
  return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _splitting(spec: P, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
  """`spec` without mesh axes of one device, and without the last of an array axis that they do not divide.

  Over an axis of one device there is nothing to exchange, but a CPU would copy the array for it.
  """
  entries: list[Any] = []
  for entry, size in zip(spec, shape):
    axes = tuple(axis for axis in entry_axes(entry) if mesh.shape[axis] > 1)
    while axes and size % math.prod(mesh.shape[axis] for axis in axes):
      axes = axes[:-1]
    entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return P(*entries)


TOKENS = partition_spec(("batch", "length"))  # of every array [B, T, ...] of a batch


def parameter_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
  """NamedSharding of every parameter; an axis that its mesh axes do not divide stays whole."""
  from qwen3_jax.models.transformer import abstract_parameters, logical_axes

  def sharding(shape: jax.ShapeDtypeStruct, names: tuple[str, ...]) -> NamedSharding:
    return NamedSharding(mesh, array_spec(names, shape.shape, mesh))

  return jax.tree.map(sharding, abstract_parameters(config), logical_axes(config))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of every field [B, T] of a Batch."""
  return NamedSharding(mesh, TOKENS)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def current_mesh():
  """The mesh of the enclosing `jax.set_mesh`, or None outside one or on a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


def batch_shards(mesh: Mesh | AbstractMesh | None) -> int:
  """In how many parts a mesh splits a batch, or the slots of a rollout; 1 without one."""
  return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_mesh(B: int, T: int):
  """`current_mesh()` if it splits a batch [B, T] evenly, so that devices can work on their own tokens; else None."""
  mesh = current_mesh()
  if mesh is None or B % batch_shards(mesh):
    return None
  context = mesh.shape["context"]
  return mesh if context == 1 or T % (2 * context) == 0 else None


def constrain(x: jax.Array, *names: str) -> jax.Array:
  """Pins an activation's sharding by the logical names of its axes; does nothing outside a mesh."""
  mesh = current_mesh()
  if mesh is None:
    return x
  # An activation's hidden axis stays whole: its batch axis already uses fsdp.
  spec = partition_spec(names, {**_rules.get(), "embed": ()})
  return jax.lax.with_sharding_constraint(x, _splitting(spec, x.shape, mesh))


def row_major(parameter: jax.Array, *names: str) -> jax.Array:
  """`parameter`, and its gradient, with the last axis contiguous in memory; does nothing outside a mesh.

  A compiler that would rather have another layout then changes that of this array, not of one it is a slice of.
  """
  mesh = current_mesh()
  if mesh is None:
    return parameter
  spec = array_spec(names, parameter.shape, mesh)
  pin = lambda shard: with_layout_constraint(shard, Layout(tuple(range(shard.ndim))))
  # The constraint knows nothing of sharding: outside shard_map XLA would gather the parameter for it.
  return on_shards(pin, mesh, in_specs=spec, out_specs=spec)(parameter)


def on_shards(function: Callable, mesh: Mesh | AbstractMesh, in_specs: Any, out_specs: Any) -> Callable:
  """`function` of each device's shards.

  The derivative by an array is summed over mesh axes that its spec does not name. So those of one device are named:
  there is nothing to sum, but a CPU would copy the array.
  """
  alone = [axis for axis in mesh.axis_names if mesh.shape[axis] == 1]

  def naming(spec: P) -> P:
    if not len(spec):
      return spec
    others = [axis for axis in alone if not any(axis in entry_axes(entry) for entry in spec)]
    return P((*entry_axes(spec[0]), *others), *spec[1:])

  in_specs = jax.tree.map(naming, in_specs, is_leaf=lambda x: isinstance(x, P))
  return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
