"""The least that a training step must send for its mesh and shardings: what a compiled one is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.compilation.collectives import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, REDUCE_SCATTER, Collective
from qwen3_jax.compilation.replica_groups import group_of_axes
from qwen3_jax.models.transformer import logical_axes
from qwen3_jax.sharding import TOKEN_AXES, entry_axes
from qwen3_jax.train_program import TrainProgram


def ideal_collectives(program: TrainProgram, mesh: Mesh, parameters: Any) -> list[Collective]:
  """One entry per tensor and transfer; `loops` says how often. t: tokens of a micro-batch on a device, a: bytes of an
  activation; `parameters`: ShapeDtypeStructs with their shardings.

  Weights: what token axes split is gathered twice a micro-batch, for the forward and the backward pass, in bfloat16,
  which matmuls read whatever the activations are; its gradient is scattered once a micro-batch, and over token axes
  that do not split it summed once a step, both in the activations' type. Experts: out and back, forward and backward,
  the cheaper of an all-to-all of t * k * D * a and all tokens gathered and scattered. Tensor: two sums of t * D * a
  each way. Context: the row's keys and values gathered for each pass, their gradients scattered. Recomputation sends
  nothing.
  """
  model, sizes = program.model, dict(mesh.shape)
  activation = np.dtype(model.dtype).itemsize
  repeats = (program.micro_batches, model.num_layers)
  B, T = program.batch_shape
  shards = int(np.prod([sizes[axis] for axis in TOKEN_AXES]))
  tokens = B * T // program.micro_batches // shards

  found = list(_of_weights(program, mesh, parameters, activation))

  def add(kind: str, axis: str, payload: int, times: int, scope: str) -> None:
    if sizes[axis] > 1:
      group = group_of_axes([axis], sizes)
      found.extend([Collective(kind, model.dtype, axis, group, payload, repeats, scope)] * times)

  if model.is_moe:
    row, n, k = tokens * model.hidden_size * activation, sizes["expert"], model.num_experts_per_token
    if n <= k:
      add(ALL_GATHER, "expert", n * row, 2, "experts")
      add(REDUCE_SCATTER, "expert", n * row, 2, "experts")
    else:
      add(ALL_TO_ALL, "expert", k * row, 4, "experts")
  add(ALL_REDUCE, "tensor", tokens * model.hidden_size * activation, 4, "tensor")
  key_value = 2 * model.num_kv_heads * model.head_dim // sizes["tensor"]
  whole_rows = tokens * sizes["context"] * key_value * activation
  add(ALL_GATHER, "context", whole_rows, 2, "keys and values")
  add(REDUCE_SCATTER, "context", whole_rows, 1, "keys and values")
  return found


def _of_weights(program: TrainProgram, mesh: Mesh, parameters: Any, activation: int) -> Iterator[Collective]:
  sizes, model = dict(mesh.shape), program.model
  names = jax.tree.leaves(logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple))
  for (path, leaf), logical in zip(jax.tree.leaves_with_path(parameters), names):
    layers = model.num_layers if logical[0] == "layers" else 1
    spec = list(leaf.sharding.spec) + [None] * (len(leaf.shape) - len(leaf.sharding.spec))
    split = {axis: name for entry, name in zip(spec, logical) for axis in entry_axes(entry)}
    gathered = [axis for axis, name in split.items() if axis in TOKEN_AXES and name != "experts" and sizes[axis] > 1]
    summed = [axis for axis in TOKEN_AXES if axis not in split and sizes[axis] > 1]
    kept = int(np.prod([sizes[axis] for axis in split if axis not in gathered]))
    elements = int(np.prod(leaf.shape)) // layers // kept
    scope = jax.tree_util.keystr(path)
    loops = (program.micro_batches, layers)
    if gathered:
      group, axes = group_of_axes(gathered, sizes), _joined(gathered, sizes)
      gather = Collective(ALL_GATHER, "bfloat16", axes, group, elements * 2, loops, scope)
      yield from (gather, gather)
      yield Collective(REDUCE_SCATTER, model.dtype, axes, group, elements * activation, loops, scope)
    if summed:
      share = elements * activation // int(np.prod([sizes[axis] for axis in gathered]))
      group, axes = group_of_axes(summed, sizes), _joined(summed, sizes)
      yield Collective(ALL_REDUCE, model.dtype, axes, group, share, (layers,), scope)


def _joined(axes: Sequence[str], sizes: Mapping[str, int]) -> str:
  return "+".join(axis for axis in sizes if axis in axes)
