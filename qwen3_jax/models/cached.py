"""The model on tokens that follow others, whose keys and values are cached: prefill and decoding."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.rope import rotation
from qwen3_jax.models.transformer import (
  Parameters,
  Transformer,
  abstract_model,
  abstract_parameters,
  from_parameters,
  logical_axes,
)
from qwen3_jax.sharding import constrain, decoding, row_major


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
  """Where new tokens [B, T] go. A row's new tokens are its last `counts`; what comes before them is padding."""

  slots: jax.Array | None  # int32 [B]: the row's row of the cache; None: row b is row b of the cache
  starts: jax.Array  # int32 [B]: tokens that are cached already
  counts: jax.Array  # int32 [B]: 0..T; rows of 0 write nothing
  page_table: jax.Array | None = None  # int32 [B, pages]: of a paged cache

  def positions(self, T: int) -> jax.Array:
    """int32 [B, T]; of padding, less than `starts`."""
    return self.starts[:, None] + jnp.arange(T, dtype=jnp.int32) - (T - self.counts[:, None])

  def is_new(self, T: int) -> jax.Array:
    """bool [B, T]"""
    return jnp.arange(T) >= T - self.counts[:, None]


class Cache(Protocol):
  def attend(self, layer: Any, place: Place, query: jax.Array, key: jax.Array, value: jax.Array):
    """Caches key and value [B, T, K, H] of new tokens; their queries [B, T, N, H] on all they see -> (same, cache)."""


def decoding_layout(config: ModelConfig, params: Parameters, stacked: bool) -> Parameters:
  """Parameters as `cached_hidden` takes them: in `config.dtype` and, unless `stacked`, a tuple of layers.

  Stacked layers are scanned. A tuple compiles slower, and spares a CPU from copying each layer out of the stack.
  """
  names = nnx.state(abstract_model(config), nnx.Param)
  dtypes = nnx.to_pure_dict(names, extract_fn=lambda variable: variable.get_metadata("compute_dtype"))
  params = jax.tree.map(lambda p, dtype: p.astype(dtype), params, dtypes)
  if stacked:
    return params
  layers = tuple(jax.tree.map(lambda p, i=i: p[i], params["layers"]) for i in range(config.num_layers))
  return {**params, "layers": layers}


def cached_hidden(
  config: ModelConfig, params: Parameters, tokens: jax.Array, place: Place, cache: Any, return_experts: bool = False
) -> tuple[Transformer, jax.Array, Any, jax.Array | None]:
  """Runs new tokens int32 [B, T] -> (the model without its layers, [B, T, D] after the final norm, the cache, experts).

  Args:
    params: as `decoding_layout` leaves them.
    cache: a `Cache`; its layer is an int where layers are a tuple, else traced.
    return_experts: whether to return whom tokens went to, int32 [L, B, T, k]; else None.
  """
  with decoding():
    layers = params["layers"]
    model = from_parameters(config, {**params, "layers": abstract_parameters(config)["layers"]})
    graph, axes = nnx.graphdef(model.layers), logical_axes(config)["layers"]
    T = tokens.shape[1]
    rope = rotation(config, jnp.maximum(place.positions(T), 0))
    segment_ids = place.is_new(T).astype(jnp.int32)
    x = constrain(model.embed(tokens), "batch", "length", "embed")

    def run(carry, layer, index):
      x, cache = carry
      attend = lambda query, key, value: cache.attend(index, place, query, key, value)
      if not isinstance(layers, tuple):
        layer = jax.tree.map(lambda parameter, names: row_major(parameter, *names[1:]), layer, axes)
      x, routing, cache = nnx.merge(graph, layer)(x, rope, segment_ids, attend)
      return (x, cache), routing.experts if return_experts else None

    if isinstance(layers, tuple):
      carry = (x, cache)
      chosen = []
      for index, layer in enumerate(layers):
        carry, experts = run(carry, layer, index)
        chosen.append(experts)
      experts = jnp.stack(chosen) if return_experts else None
    else:
      indices = jnp.arange(config.num_layers, dtype=jnp.int32)
      carry, experts = jax.lax.scan(lambda carry, xs: run(carry, *xs), (x, cache), (layers, indices))
    x, cache = carry
    return model, model.final_norm(x), cache, experts
