"""Mixture of experts: float32 softmax router, top-k, dropless dispatch (Qwen3 report, section 2).

`balance_loss` is the global-batch load-balancing loss of "Demons in the Detail" (Qiu et al. 2025).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.grouped_matmul import api as grouped_matmul
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.expert_parallel import expert_feed_forward
from qwen3_jax.models.linear import linear
from qwen3_jax.models.parts import normal_parameter
from qwen3_jax.sharding import constrain

_ROUTER = ("embed", "choices")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStatistics:
  """Sums over the tokens of a batch that are not padding; add them to merge batches. float32.

  Within the model's output every field has a leading axis L.
  """

  slots: jax.Array  # [E] how many of the tokens' k choices fell on each expert; carries no gradient
  probability: jax.Array  # [E] sum of the router's probability of each expert
  tokens: jax.Array  # [] number of tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
  """What a layer's router did."""

  statistics: RouterStatistics
  experts: jax.Array  # int32 [B, T, k]: whom each token went to


def balance_loss(statistics: RouterStatistics, slots: jax.Array, slot_tokens: jax.Array) -> jax.Array:
  """Sum over layers of E * sum_e f_e P_e; a balanced layer contributes 1.

  f_e is expert e's share of `slots` [L, E], counted over the whole global batch of `slot_tokens` tokens, and P_e
  its mean probability over that batch, of which `statistics` may be one micro-batch. Gradient flows through P_e only.
  """
  E = slots.shape[-1]
  share = jax.lax.stop_gradient(slots / jnp.maximum(jnp.sum(slots, axis=-1, keepdims=True), 1.0))
  mean_probability = statistics.probability / jnp.maximum(slot_tokens, 1.0)[..., None]
  return E * jnp.sum(share * mean_probability)


def pooled_balance_loss(statistics: RouterStatistics) -> jax.Array:
  """The auxiliary loss as transformers computes it: f and P pooled over layers, f summing to k (balanced = k)."""
  tokens = jnp.maximum(jnp.sum(statistics.tokens), 1.0)
  share = jax.lax.stop_gradient(jnp.sum(statistics.slots, axis=0) / tokens)
  probability = jnp.sum(statistics.probability, axis=0) / tokens
  return share.shape[-1] * jnp.sum(share * probability)


class MixtureOfExperts(nnx.Module):
  """Parameters stacked over L; the call works on one layer's slice."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    L, D, F, E = config.num_layers, config.hidden_size, config.intermediate_size, config.num_experts
    self.config = config
    self.dtype = config.dtype
    self.experts_per_token = config.num_experts_per_token
    self.renormalise = config.norm_topk_prob
    self.router = normal_parameter(rngs, config, (L, D, E), ("layers", *_ROUTER), compute_dtype=jnp.float32)
    self.gate = normal_parameter(rngs, config, (L, E, D, F), ("layers", "experts", "expert_embed", "expert_mlp"))
    self.up = normal_parameter(rngs, config, (L, E, D, F), ("layers", "experts", "expert_embed", "expert_mlp"))
    self.down = normal_parameter(rngs, config, (L, E, F, D), ("layers", "experts", "expert_mlp", "expert_embed"))

  def __call__(
    self, x: jax.Array, segment_ids: jax.Array, replayed: jax.Array | None = None
  ) -> tuple[jax.Array, Routing]:
    """x [B, T, D] -> ([B, T, D], routing; its statistics are over tokens whose segment id is not 0).

    `replayed`, int32 [B, T, k], are experts that tokens go to in place of the router's choice, with the router's
    weights for them; a token with -1 goes where the router says. So an update keeps to the experts of the rollout
    (routing replay; Zheng et al. 2025, GSPO, section 5.3).
    """
    logits = linear(x.astype(jnp.float32), self.router[...].astype(jnp.float32), _ROUTER)
    probabilities = jax.nn.softmax(logits, axis=-1)
    weights, experts = jax.lax.top_k(probabilities, self.experts_per_token)  # [B, T, k]
    if replayed is not None:
      experts = jnp.where(replayed >= 0, replayed, experts)
      weights = jnp.take_along_axis(probabilities, experts, axis=-1)
    if self.renormalise:
      weights = weights / jnp.sum(weights, axis=-1, keepdims=True)

    real = (segment_ids != 0).astype(jnp.float32)  # [B, T]
    E = logits.shape[-1]
    chosen = jnp.sum(jax.nn.one_hot(experts, E, dtype=jnp.float32), axis=2)  # [B, T, E]
    statistics = RouterStatistics(
      slots=jax.lax.stop_gradient(jnp.einsum("bte,bt->e", chosen, real)),
      probability=jnp.einsum("bte,bt->e", probabilities, real),
      tokens=jnp.sum(real),
    )
    matrices = tuple(matrix[...].astype(self.dtype) for matrix in (self.gate, self.up, self.down))
    arguments = (x, weights.astype(x.dtype), experts, *matrices)
    y = expert_feed_forward(self.config, *arguments)
    if y is None:  # one device, or a batch that the mesh does not split
      y = grouped_dispatch(*arguments)
    return constrain(y, "batch", "length", "embed"), Routing(statistics, experts)


def dense_dispatch(x, weights, experts, gate, up, down):
  """Every expert on every token: the reference. Shapes as in `grouped_dispatch`."""
  E = gate.shape[0]
  combine = jnp.einsum("btk,btke->bte", weights, jax.nn.one_hot(experts, E, dtype=weights.dtype))
  hidden = jax.nn.silu(jnp.einsum("btd,edf->btef", x, gate)) * jnp.einsum("btd,edf->btef", x, up)
  return jnp.einsum("btef,efd,bte->btd", hidden, down, combine)


def grouped_dispatch(x, weights, experts, gate, up, down):
  """Tokens sorted by expert, one grouped matmul per matrix, weighted sum of each token's k results.

  x [B, T, D], weights [B, T, k], experts int32 [B, T, k], gate/up [E, D, F], down [E, F, D] -> [B, T, D].
  """
  B, T, D = x.shape
  k, E = experts.shape[-1], gate.shape[0]
  slot_expert = experts.reshape(-1)  # [B*T*k]
  order = jnp.argsort(slot_expert, stable=True)
  group_sizes = jnp.bincount(slot_expert, length=E)
  multiply = functools.partial(grouped_matmul.grouped_matmul, group_sizes=group_sizes)
  rows = x.reshape(B * T, D)[order // k]
  hidden = jax.nn.silu(multiply(rows, gate)) * multiply(rows, up)
  results = multiply(hidden, down)[jnp.argsort(order)]  # back in slot order
  return jnp.einsum("skd,sk->sd", results.reshape(B * T, k, D), weights.reshape(B * T, k)).reshape(B, T, D)
