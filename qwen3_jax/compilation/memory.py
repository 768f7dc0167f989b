"""Where the HBM of a device goes at the fullest moment of a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from qwen3_jax.compilation.buffer_lifetimes import Buffer, Peak

GRADIENTS, SAVED, TEMPORARIES, OTHER = "gradients", "saved_activations", "temporaries", "other"
_BACKWARD, _FORWARD = "transpose(", "jvp("  # what jax.grad writes into the scopes of its two passes
_FLOATS = ("f32", "bf16", "f16", "f64")


@dataclasses.dataclass(frozen=True)
class MemoryStatistics:
  """The compiler's own figures, bytes per device."""

  argument: int
  output: int
  alias: int  # outputs that take the buffers of donated arguments
  temp: int  # all that the program sets aside, on-chip memory included
  peak: int  # memory in use at the fullest moment, arguments included; HBM, or with `host` bytes see `device_peak`
  generated_code: int
  host: int  # arguments, outputs and temporaries kept in the host's memory


def memory_statistics(compiled: jax.stages.Compiled) -> MemoryStatistics:
  stats = compiled.memory_analysis()
  assert stats is not None
  return MemoryStatistics(
    argument=stats.argument_size_in_bytes,
    output=stats.output_size_in_bytes,
    alias=stats.alias_size_in_bytes,
    temp=stats.temp_size_in_bytes,
    peak=stats.peak_memory_in_bytes,
    generated_code=stats.generated_code_size_in_bytes,
    host=stats.host_argument_size_in_bytes
    + stats.host_output_size_in_bytes
    + stats.host_temp_size_in_bytes
    - stats.host_alias_size_in_bytes,
  )


def device_bytes(tree: Any) -> int:
  """Bytes of a tree of ShapeDtypeStructs in the memory of one device, by their shardings."""
  on_device = ((leaf, shape) for leaf, shape in _shards(tree) if leaf.sharding.memory_kind != "pinned_host")
  return sum(math.prod(shape) * leaf.dtype.itemsize for leaf, shape in on_device)


def shard_shapes(tree: Any) -> frozenset[tuple[int, ...]]:
  """Shapes of the tree's arrays on one device."""
  return frozenset(shape for _, shape in _shards(tree))


def _shards(tree: Any) -> list[tuple[Any, tuple[int, ...]]]:
  return [(leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree)]


def device_peak(statistics: MemoryStatistics, replay: Peak) -> int:
  """HBM in use at the fullest moment. The compiler's peak, unless something is kept in the host's memory: it counts
  that, too, so the replayed schedule (buffer_lifetimes) then says what the device holds. It errs upwards."""
  return min(statistics.peak, statistics.argument + replay.bytes) if statistics.host else statistics.peak


def memory_categories(
  replay: Peak,
  peak: int,
  arguments: Mapping[str, Any],
  parameter_shapes: frozenset[tuple[int, ...]],
  num_layers: int,
) -> dict[str, int]:
  """Bytes by category, which add up to `peak`.

  `arguments`: category -> tree of what the program is given. Those are exact. Gradients and saved activations are the
  buffers of the replayed schedule that look like them; temporaries are its other buffers, or what is left of the peak
  if that is less. `other` is what the replay does not explain: padding, code, fragmentation.
  """
  categories = {name: device_bytes(tree) for name, tree in arguments.items()}
  of_replay = dict.fromkeys((GRADIENTS, SAVED, TEMPORARIES), 0)
  for buffer in replay.buffers:
    of_replay[_category(buffer, parameter_shapes, num_layers)] += buffer.array.padded_bytes
  left = max(peak - sum(categories.values()), 0)
  for name in (GRADIENTS, SAVED, TEMPORARIES):
    categories[name] = min(of_replay[name], left)
    left -= categories[name]
  categories[OTHER] = peak - sum(categories.values())
  return categories


def _category(buffer: Buffer, parameter_shapes: frozenset[tuple[int, ...]], num_layers: int) -> str:
  array = buffer.array
  scopes = f"{buffer.source.op_name} {buffer.written_by}"
  if array.dims in parameter_shapes and array.dtype in _FLOATS:
    # A parameter's shape in the forward pass is a copy of it in another type or layout.
    forward = _FORWARD in scopes and _BACKWARD not in scopes
    is_copy = buffer.source.opcode in ("copy", "copy-start")
    return TEMPORARIES if forward or is_copy else GRADIENTS
  stacked = len(array.dims) > 1 and array.dims[0] == num_layers  # one slice for each layer
  return SAVED if stacked and _BACKWARD not in buffer.source.op_name else TEMPORARIES
