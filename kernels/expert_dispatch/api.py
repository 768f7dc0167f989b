"""Rows from every shard of a mesh axis to any other, in runs of any length."""

from __future__ import annotations

import functools

import jax

from kernels.expert_dispatch import gathered


def exchange(
  rows: jax.Array,
  output: jax.Array,
  input_offsets: jax.Array,
  send_sizes: jax.Array,
  output_offsets: jax.Array,
  receive_sizes: jax.Array,
  axis_name: str,
) -> jax.Array:
  """Under `shard_map`: sends a run of rows to each of the P shards of `axis_name`. A ragged all-to-all on TPU.

  Args:
    rows: [M, ...].
    output: [R, ...]; returned with the received runs written over it.
    input_offsets, send_sizes: int32 [P]; shard d gets rows[input_offsets[d] :][: send_sizes[d]].
    output_offsets: int32 [P]; where that run starts in shard d's output.
    receive_sizes: int32 [P]; how many rows come from each shard.
    axis_name: a mesh axis.
  """
  ragged = functools.partial(jax.lax.ragged_all_to_all, axis_name=axis_name)
  by_gather = functools.partial(gathered.exchange, axis_name=axis_name)
  arguments = (rows, output, input_offsets, send_sizes, output_offsets, receive_sizes)
  return jax.lax.platform_dependent(*arguments, cpu=by_gather, default=lambda *arguments: ragged(*arguments))
