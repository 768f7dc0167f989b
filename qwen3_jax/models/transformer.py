"""The Qwen3 decoder: embedding, L identical layers under one scan, final norm, head."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from kernels.ordering import after, late_gradient
from qwen3_jax.models.attention import Attend, Attention
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.context_parallel import attend, from_balanced, to_balanced
from qwen3_jax.models.embedding import Embedding, Head
from qwen3_jax.models.feed_forward import FeedForward
from qwen3_jax.models.layer_gradients import cast, with_cast_gradients
from qwen3_jax.models.moe import MixtureOfExperts, RouterStatistics, Routing
from qwen3_jax.models.parts import RMSNorm
from qwen3_jax.models.remat import LAYER_INPUT, rematerialized
from qwen3_jax.models.rope import rotation
from qwen3_jax.sharding import batch_mesh, constrain, row_major

Parameters = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
  """What the layers produce, before the head."""

  final: jax.Array  # [B, T, D] after the final norm
  head: jax.Array  # [D, V]
  layers: jax.Array | None  # [L, B, T, D] each layer's input, when asked for
  router: RouterStatistics | None  # leading axis L; None when dense


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
  logits: jax.Array  # float32 [B, T, V]
  router: RouterStatistics | None


class DecoderLayers(nnx.Module):
  """All layers: parameters stacked over L, the call works on one layer's slice."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    norm = (config.num_layers, config.hidden_size)
    self.attention_norm = RMSNorm(config, norm, ("layers", "embed"))
    self.attention = Attention(config, rngs)
    self.feed_forward_norm = RMSNorm(config, norm, ("layers", "embed"))
    self.feed_forward = (MixtureOfExperts if config.is_moe else FeedForward)(config, rngs)

  def __call__(
    self, x, rope, segment_ids, attend: Attend, replayed: jax.Array | None = None
  ) -> tuple[jax.Array, Routing | None, Any]:
    """x [B, T, D] -> ([B, T, D], routing, what `attend` keeps); `replayed` as `MixtureOfExperts` takes them."""
    with jax.named_scope("attention"):
      y, kept = self.attention(self.attention_norm(x), rope, attend)
      x = checkpoint_name(constrain(x + y, "batch", "length", "embed"), "attention_residual")
    with jax.named_scope("feed_forward"):
      y, routing = self.feed_forward(self.feed_forward_norm(x), segment_ids, replayed)
      return constrain(x + y, "batch", "length", "embed"), routing, kept


class Transformer(nnx.Module):
  """A Qwen3 model. `Transformer(config, nnx.Rngs(seed))` initialises for training from scratch.

  Matrices are N(0, 0.02) as released, except that the rows which make logits have std at most 0.5 / sqrt(D):
  the final norm hands the head vectors of length sqrt(D), so logits start with std 0.5 and the loss at ln(V) in every
  size, where a flat 0.02 would start 7% above it at D = 4096 (our choice).
  """

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    head_std = min(config.initializer_range, 0.5 / config.hidden_size**0.5)
    self.embed = Embedding(config, rngs, head_std if config.tie_word_embeddings else config.initializer_range)
    self.layers = DecoderLayers(config, rngs)
    self.final_norm = RMSNorm(config, (config.hidden_size,), ("embed",))
    if not config.tie_word_embeddings:
      self.head = Head(config, rngs, head_std)

  @property
  def head_kernel(self) -> jax.Array:
    """[D, V]; the transposed embedding when tied."""
    return self.embed.embedding[...].T if self.config.tie_word_embeddings else self.head.kernel[...]

  def hidden(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    return_layers: bool = False,
    experts: jax.Array | None = None,
  ) -> Hidden:
    """Runs the layers on tokens int32 [B, T]; see `__call__`.

    `return_layers` also keeps every layer's input. `experts`, int32 [B, T, L, k], are those that a rollout recorded, -1
    where it did not: tokens go to them whatever the routers say now.
    """
    if tokens.ndim != 2:
      raise ValueError(f"tokens must be [B, T], got shape {tokens.shape}")
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    if segment_ids is None:
      segment_ids = jnp.ones(tokens.shape, jnp.int32)
    mesh = batch_mesh(*tokens.shape)
    if experts is not None and not self.config.is_moe:
      raise ValueError("experts: the model is dense")
    split = mesh is not None and mesh.shape["context"] > 1
    if split:
      experts = None if experts is None else to_balanced(mesh, experts)
      tokens, positions, segment_ids = (to_balanced(mesh, x) for x in (tokens, positions, segment_ids))
    x = constrain(self.embed(tokens), "batch", "length", "embed")
    head = self.head_kernel
    if self.config.tie_word_embeddings:
      # Else XLA makes the head's gradient float32, to add the table's, before the backward pass through the layers.
      head, x = late_gradient(head.astype(x.dtype), x)
    rope = rotation(self.config, positions)
    replayed = None if experts is None else jnp.moveaxis(experts, 2, 0)
    x, (layers, router) = self._run_layers(x, rope, segment_ids, replayed, return_layers)
    if split:
      x = from_balanced(mesh, x)
      layers = None if layers is None else jax.vmap(lambda x: from_balanced(mesh, x))(layers)
    return Hidden(self.final_norm(x), head, layers, router)

  def _run_layers(self, x, rope, segment_ids, replayed, return_layers: bool):
    """x [B, T, D] after the last layer, and each layer's input, if asked for, and statistics.

    `replayed` is None or int32 [L, B, T, k].
    """
    graph, state = nnx.split(self.layers)
    names = _axes(state)

    def scan(parameters: Parameters, carriers: Parameters, x: jax.Array, rope, segment_ids, replayed):
      def layer(x: jax.Array, xs: tuple[Parameters, Parameters, jax.Array, jax.Array | None]):
        parameters, carriers, index, replayed = xs
        x = checkpoint_name(x, LAYER_INPUT)
        if not self.config.unroll_layers:
          # Else XLA casts the parameters of all layers ahead of the loop, or changes their layout, and keeps copies.
          of_layer = lambda parameter, names: row_major(after(parameter, index), *names[1:])
          parameters = jax.tree.map(of_layer, parameters, names)
        module = nnx.merge(graph, jax.tree.map(cast, parameters, carriers))
        within_segments = lambda query, key, value: (attend(query, key, value, segment_ids), None)
        y, routing, _ = module(x, rope, segment_ids, within_segments, replayed)
        return y, (x if return_layers else None, routing and routing.statistics)

      indices = jnp.arange(self.config.num_layers, dtype=jnp.float32)
      unroll = self.config.num_layers if self.config.unroll_layers else 1
      return jax.lax.scan(
        rematerialized(layer, self.config), x, (parameters, carriers, indices, replayed), unroll=unroll
      )

    dtypes = nnx.to_pure_dict(state, extract_fn=lambda variable: variable.get_metadata("compute_dtype"))
    return with_cast_gradients(scan, dtypes)(nnx.to_pure_dict(state), x, rope, segment_ids, replayed)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Final hidden states [..., D] -> float32 [..., V]."""
    kernel = self.head_kernel.astype(self.config.dtype)
    return jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=jnp.float32)

  def __call__(
    self, tokens: jax.Array, positions: jax.Array | None = None, segment_ids: jax.Array | None = None
  ) -> Output:
    """Logits of the next token.

    Args:
      tokens: int32 [B, T].
      positions: int32 [B, T], 0..T-1 unless given.
      segment_ids: int32 [B, T]; a token sees only its own segment; 0 is padding. One segment unless given.

    Returns:
      Output: logits float32 [B, T, V]; router statistics summed over tokens that are not padding, None when dense.
    """
    hidden = self.hidden(tokens, positions, segment_ids)
    return Output(self.logits(hidden.final), hidden.router)


def parameters(model: Transformer) -> Parameters:
  """The model's parameters as a plain nested dict of arrays."""
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@functools.lru_cache(maxsize=32)  # a run asks for its model's many times
def abstract_model(config: ModelConfig) -> Transformer:
  """The model with shapes in place of arrays; allocates nothing. One for all who ask: not to be changed."""
  return nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0)))


def from_parameters(config: ModelConfig, params: Parameters) -> Transformer:
  """A model that computes with `params` (arrays or tracers, not copied)."""
  return nnx.merge(nnx.graphdef(abstract_model(config)), params)


def abstract_parameters(config: ModelConfig) -> Parameters:
  """`parameters` as ShapeDtypeStructs."""
  return parameters(abstract_model(config))


def logical_axes(config: ModelConfig) -> Parameters:
  """The logical name of every axis of every parameter: tuples in the tree of `parameters`."""
  return _axes(nnx.state(abstract_model(config), nnx.Param))


def _axes(state: nnx.State) -> Parameters:
  return nnx.to_pure_dict(state, extract_fn=lambda variable: variable.get_metadata("axes"))


def initialize(config: ModelConfig, seed: int | jax.Array) -> Parameters:
  """Fresh parameters from a seed; jit it with `out_shardings` to initialise directly into shardings."""
  return parameters(Transformer(config, nnx.Rngs(seed)))
