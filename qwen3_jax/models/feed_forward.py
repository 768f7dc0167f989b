"""SwiGLU feed-forward (Shazeer 2020)."""

from __future__ import annotations

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.linear import linear
from qwen3_jax.models.parts import normal_parameter
from qwen3_jax.sharding import constrain

_IN, _OUT = ("embed", "mlp"), ("mlp", "embed")


class FeedForward(nnx.Module):
  """down(silu(gate(x)) * up(x)). Parameters stacked over L; the call works on one layer's slice."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    L, D, F = config.num_layers, config.hidden_size, config.intermediate_size
    self.dtype = config.dtype
    self.gate = normal_parameter(rngs, config, (L, D, F), ("layers", *_IN))
    self.up = normal_parameter(rngs, config, (L, D, F), ("layers", *_IN))
    self.down = normal_parameter(rngs, config, (L, F, D), ("layers", *_OUT))

  def __call__(self, x: jax.Array, segment_ids: jax.Array, replayed: jax.Array | None = None) -> tuple[jax.Array, None]:
    """x [B, T, D] -> ([B, T, D], None): no router, no routing."""
    gate = checkpoint_name(linear(x, self.gate[...].astype(self.dtype), _IN), "gate")
    up = checkpoint_name(linear(x, self.up[...].astype(self.dtype), _IN), "up")
    hidden = constrain(jax.nn.silu(gate) * up, "batch", "length", "mlp")
    return linear(hidden, self.down[...].astype(self.dtype), _OUT), None
