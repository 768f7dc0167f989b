"""Token embedding and output head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.collectives import all_gather
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.parts import normal_parameter
from qwen3_jax.sharding import TOKENS, array_spec, batch_mesh, entry_axes, on_shards

_AXES = ("vocab", "embed")


class Embedding(nnx.Module):
  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, std: float):
    self.dtype = config.dtype
    self.embedding = normal_parameter(rngs, config, (config.vocab_size, config.hidden_size), _AXES, std)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """tokens int32 [B, T] -> [B, T, D]. Gradients of a row add up in the parameter's dtype."""
    table = self.embedding[...]
    mesh = batch_mesh(*tokens.shape)
    if mesh is None:
      return jnp.take(table, tokens, axis=0).astype(self.dtype)
    spec = array_spec(_AXES, table.shape, mesh)

    def local(table, tokens):
      """Every shard looks up its columns for the tokens of all: what moves is activations, never the table."""
      if spec[1]:
        tokens = all_gather(tokens, entry_axes(spec[1]), 0).reshape(-1, *tokens.shape)  # [shards, b, t]
      if spec[0]:
        row = tokens - jax.lax.axis_index("tensor") * table.shape[0]
        here = (row >= 0) & (row < table.shape[0])
        x = jnp.take(table, jnp.clip(row, 0, table.shape[0] - 1), axis=0)
        x = jax.lax.psum(jnp.where(here[..., None], x, 0).astype(self.dtype), "tensor")
      else:
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
      if spec[1]:
        x = jax.lax.all_to_all(x, spec[1], split_axis=0, concat_axis=0, tiled=True)  # [shards, b, t, columns]
        x = jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1)
      return x

    return on_shards(local, mesh, in_specs=(spec, TOKENS), out_specs=TOKENS)(table, tokens)


class Head(nnx.Module):
  """Read by `Transformer.head_kernel`."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs, std: float):
    self.kernel = normal_parameter(rngs, config, (config.hidden_size, config.vocab_size), _AXES[::-1], std)
