"""MaxText's own training step, one at a time on request: the peer of `benchmarks/train_cpu.py` in its own environment.

  python benchmarks/maxtext_worker.py '{"vocab_size": 512, ..., "batch_size": 32, "sequence_length": 128}'

Everything between the configuration and the jitted step is MaxText's trainer: its Qwen3 decoder, loss, AdamW, clipping
and synthetic batch. When the step is built, prints the number of parameters; then, for every line it reads, takes one
step and prints the loss before it. In between it does nothing. It knows nothing of qwen3_jax, whose interpreter is
another one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.core.spmd import logical_axis_rules


def settings(shape: dict[str, Any], folder: str) -> dict[str, Any]:
  """MaxText's configuration of a Qwen3 of this shape, set as took the least CPU time at 12M parameters.

  float32 takes 1.4 times the CPU time of bfloat16 where the processor multiplies bfloat16 (AVX512-BF16). In float32
  the loss in 8 pieces (num_vocab_tiling) helps; in bfloat16 it harms. In float32 two virtual devices, fsdp or data,
  take more. In bfloat16 remat and a scan over layers make no difference.
  """
  return {
    "run_name": "benchmark",
    "base_output_directory": folder,
    "hardware": "cpu",
    "skip_jax_distributed_system": True,
    "model_name": "qwen3-0.6b",  # for what is not a size: QK-Norm, SwiGLU, tied embeddings, epsilon, RoPE base
    "override_model_config": True,
    "vocab_size": shape["vocab_size"],
    "base_num_decoder_layers": shape["num_layers"],
    "base_emb_dim": shape["hidden_size"],
    "base_mlp_dim": shape["intermediate_size"],
    "base_num_query_heads": shape["num_heads"],
    "base_num_kv_heads": shape["num_kv_heads"],
    "head_dim": shape["head_dim"],
    "max_target_length": shape["sequence_length"],
    "per_device_batch_size": shape["batch_size"],
    "dataset_type": "synthetic",
    "normalize_embedding_logits": True,  # embeddings start with a standard deviation of 1: without it, a loss of 158
    "attention": "dot_product",
    "dtype": "bfloat16",  # of activations and products; parameters and moments are float32
    "remat_policy": "none",
    "scan_layers": False,
    "enable_checkpointing": False,
    "enable_tensorboard": False,
  }


def make_step(shape: dict[str, Any], folder: str) -> tuple[int, Callable[[], float]]:
  """The parameters' number, and a function that takes a step and returns its loss."""
  from maxtext.trainers.pre_train import train  # here, for it prints when it is imported
  from maxtext.utils import sharding, train_utils

  config, recorder = train.initialize(["", *(f"{key}={value}" for key, value in settings(shape, folder).items())])
  _, _, shardings, _, mesh, _, _, loader, rampup, _, train_state = train_utils.setup_train_loop(config, recorder)
  graph, state = nnx.split(train_state)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(train_state.model, nnx.Param)))
  parameter_shardings, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
  step, _ = train_utils.jit_train_and_eval_step(
    config, graph, mesh, state, shardings, train.train_step, params_shardings=parameter_shardings
  )
  batch = loader.load_next_batch(rampup_manager=rampup)

  def run() -> float:
    nonlocal state
    with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
      state, metrics = step(state, batch)
    return float(metrics["scalar"]["learning/loss"])

  return parameters, run


def main() -> None:
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what MaxText prints is not an answer
  with tempfile.TemporaryDirectory() as folder:
    parameters, run = make_step(json.loads(sys.argv[1]), folder)
    print(parameters, file=answers)
    for _ in sys.stdin:
      print(run(), file=answers)


if __name__ == "__main__":
  main()
