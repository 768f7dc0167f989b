"""Cross-entropy of a model's final hidden states, on each device's own tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from kernels.linear_cross_entropy.api import linear_cross_entropy
from qwen3_jax.sharding import TOKEN_AXES, TOKENS, array_spec, batch_mesh, entry_axes


def token_loss(
  hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
  """`linear_cross_entropy` of hidden [B, T, D] with the head [D, V]: sums over the global batch.

  On a mesh the head is gathered once, its gradient is added up on each device and scattered once; over
  `tensor` the vocabulary stays split.
  """
  head = head.astype(hidden.dtype)
  mesh = batch_mesh(*targets.shape)
  if mesh is None:
    return linear_cross_entropy(hidden, head, targets, weights, z_loss)
  spec = array_spec(("embed", "vocab"), head.shape, mesh)

  embed, vocabulary = spec
  embed_axes = entry_axes(embed)
  vocabulary_axis = vocabulary if mesh.shape["tensor"] > 1 else None

  def local(hidden, head, targets, weights):
    sums = linear_cross_entropy(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes)
    return jax.lax.psum(sums, TOKEN_AXES)

  in_specs = (TOKENS, spec, TOKENS, TOKENS)
  mapped = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=P(), check_vma=False)
  return mapped(hidden, head, targets, weights.astype(jnp.float32))
