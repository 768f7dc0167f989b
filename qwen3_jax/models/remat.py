"""What a layer's forward pass leaves for its backward pass; the rest is computed again."""

from __future__ import annotations

from typing import Any

import jax

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.sharding import current_mesh

LAYER_INPUT = "layer_input"
GATHERED = "gathered"  # a matrix put together from its shards: no policy keeps it

# Policy -> names of the values kept besides each layer's input. `dots` keeps the results of all large matmuls whose
# results the backward pass reads, so that nothing but norms, RoPE, activations and the router is computed twice.
_KEPT: dict[str, tuple[str, ...]] = {
  "full": (),
  "attention": ("attention_output",),
  "dots": ("query", "key", "value", "attention_output", "attention_residual", "gate", "up"),
}


def keeps_feed_forward(config: ModelConfig) -> bool:
  """Whether the results of the gate and up matrices stay until the backward pass."""
  return config.remat in ("none", "dots")


def rematerialized(layer: Any, config: ModelConfig) -> Any:
  """`layer`, the body of a scan over layers, under `config.remat` and `config.offload_layer_inputs`.

  Offloaded, a layer's input waits in the host's memory: 2 * B * T * D bytes per layer leave the device.
  """
  if config.remat == "none" and current_mesh() is None:
    return layer
  policies = jax.checkpoint_policies
  kept = _KEPT.get(config.remat, ())
  if config.remat == "none":
    policy = policies.save_anything_except_these_names(GATHERED)
  elif config.offload_layer_inputs:
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=list(kept),
      names_which_can_be_offloaded=[LAYER_INPUT],
      offload_src="device",
      offload_dst="pinned_host",
    )
  else:
    policy = policies.save_only_these_names(*kept)
  return jax.checkpoint(layer, policy=policy, prevent_cse=config.unroll_layers)
