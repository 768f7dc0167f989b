"""Memory and time of a training step from its shapes alone: what to try next. Rough; the compiler has the last word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from qwen3_jax.compilation.collectives import Network
from qwen3_jax.compilation.ideal_network import ideal_collectives
from qwen3_jax.compilation.memory import device_bytes
from qwen3_jax.compilation.topologies import Topology
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.sharding import TOKEN_AXES
from qwen3_jax.train_program import TrainProgram


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes per device and seconds per step."""

  state: int  # parameters and optimizer
  gradients: int
  saved: int  # activations kept for the backward pass
  working: int  # of one layer while it is differentiated
  seconds: float

  @property
  def bytes(self) -> int:
    return self.state + self.gradients + self.saved + self.working


def estimate(program: TrainProgram, mesh: Mesh, topology: Topology, arguments: Mapping[str, Any]) -> Estimate:
  """`arguments`: of the program on the mesh; they take a second to find and do not depend on how it recomputes."""
  model, sizes = program.model, mesh.shape
  parameters = device_bytes(arguments["parameters"])
  B, T = program.batch_shape
  shards = int(np.prod([sizes[axis] for axis in TOKEN_AXES]))
  tokens = B * T / program.micro_batches / shards
  activation = np.dtype(model.dtype).itemsize
  saved = saved_per_token(model, sizes["tensor"]) * model.num_layers * tokens * activation
  everything = (
    saved_per_token(model.replace(remat="none", offload_layer_inputs=False), sizes["tensor"]) * tokens * activation
  )
  # Of the micro-batch and, over several, their sum; in another type than the parameters' with a copy of these in it.
  width = np.dtype(program.gradient_dtype).itemsize / np.dtype(model.param_dtype).itemsize
  gradient_size = width * ((1 if program.micro_batches == 1 else 2) + (width != 1))
  network = Network(topology, list(mesh.devices.flat))
  sending = sum(
    network.seconds(item) * item.count for item in ideal_collectives(program, mesh, arguments["parameters"])
  )
  computing = program.flops_per_step * (1 + recomputed_share(model)) / topology.device_count
  return Estimate(
    state=parameters + device_bytes(arguments["optimizer"]),
    gradients=int(parameters * gradient_size),
    saved=int(saved),
    working=int(everything),
    seconds=max(computing / topology.chip.device_peak_flops, sending),
  )


def saved_per_token(model: ModelConfig, tensor: int = 1) -> float:
  """Numbers of one layer that a device keeps for one token between its forward and backward pass (models/remat.py)."""
  D, H, N, K = model.hidden_size, model.head_dim, model.num_heads, model.num_kv_heads
  attention = N * H / tensor
  projections = (N + 2 * K) * H / tensor
  experts = model.num_experts_per_token * model.expert_buffer if model.is_moe else 1
  gate_and_up = experts * 2 * model.intermediate_size / tensor
  layer_input = 0 if model.offload_layer_inputs else D
  kept = {
    "full": 0,
    "attention": attention,
    "dots": projections + attention + D + gate_and_up,
    "none": 3 * D + 2 * projections + attention + 2 * gate_and_up,  # and inputs of norms, products and activations
  }
  return layer_input + kept[model.remat]


def recomputed_share(model: ModelConfig) -> float:
  """Operations that the backward pass repeats, over the model's: a third is the whole forward pass."""
  return {"full": 1 / 3, "attention": 0.28, "dots": 0.02, "none": 0.0}[model.remat]
