"""A training step on the accelerator at hand, and whether what it computes is right.

  python benchmarks/train_accelerator.py [--size=0.6B] [--batch_size=8] [--json=FILE]

First the kernels' implementations that this platform gets are compared with their oracles; then the step is
timed: rows of 4,096 tokens in four documents, bfloat16 activations, float32 parameters and AdamW, remat dots; once with
the attention that the platform gets and once with the blockwise one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from random_batch import random_batch

from kernels.flash_attention import api as attention_api
from kernels.flash_attention import cudnn
from kernels.flash_attention import reference as attention_reference
from kernels.grouped_matmul import api as grouped_api
from kernels.grouped_matmul import reference as grouped_reference
from kernels.linear_cross_entropy import api as loss_api
from kernels.linear_cross_entropy import reference as loss_reference
from qwen3_jax.config import pretrain_stage
from qwen3_jax.metrics import device_peak_flops
from qwen3_jax.models.config import model_config
from qwen3_jax.objectives.next_token import next_token
from qwen3_jax.optimizer import make_optimizer
from qwen3_jax.sharding import batch_sharding, make_mesh
from qwen3_jax.train_program import TrainProgram

LENGTH = 4096
DOCUMENTS = 4  # in a row


def worst_error(ours: Callable, oracle: Callable, arguments: tuple, differentiated: int) -> float:
  """Largest difference of a gradient from the oracle's on the CPU, over the largest gradient."""
  split = lambda function: lambda *floats: jnp.sum(jnp.sin(function(*floats, *arguments[differentiated:])))
  both = lambda function: jax.jit(jax.value_and_grad(split(function), argnums=tuple(range(differentiated))))
  found = both(ours)(*arguments[:differentiated])
  with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), arguments[:differentiated])
    expected = both(oracle)(*wide)
  worst = 0.0
  for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1])):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    worst = max(worst, float(np.max(np.abs(a - b)) / np.max(np.abs(b))))
  return worst


def errors() -> list[dict[str, Any]]:
  rng = np.random.default_rng(0)
  rows = []

  def add(name: str, ours: Callable, oracle: Callable, floats: list[np.ndarray], rest: tuple, bar: dict[str, float]):
    for dtype, most in bar.items():
      arguments = (*(jnp.asarray(x, dtype) for x in floats), *rest)
      worst = worst_error(ours, oracle, arguments, len(floats))
      rows.append({"name": f"{name}, {dtype}", "unit": "error", "ours": worst, "bar": most, "holds": worst <= most})

  normal: Callable[..., np.ndarray] = lambda *shape: rng.normal(size=shape)
  B, T, N, K, H = 2, 384, 8, 2, 128
  segments = np.sort(rng.integers(0, 5, (B, T)), axis=1).astype(np.int32)
  bars = {"float32": 2e-3, "bfloat16": 3e-2}  # GPUs multiply float32 as TensorFloat-32
  add(
    "attention",
    attention_api.attention,
    attention_reference.attention,
    [normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H)],
    (segments,),
    bars,
  )
  order = np.arange(T, dtype=np.int32)
  add(
    "attention in blocks, with log sums",
    lambda *arguments: _joined(attention_api.attention_with_log_sums(*arguments)),
    lambda *arguments: _joined(attention_reference.attention_with_log_sums(*arguments)),
    [normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H)],
    (segments, segments, order),
    bars,
  )
  sizes = np.array([0, 100, 3, 0, 281], np.int32)
  add(
    "grouped matmul",
    grouped_api.grouped_matmul,
    grouped_reference.grouped_matmul,
    [normal(384, 64), normal(5, 64, 96) / 8],
    (sizes,),
    bars,
  )
  targets = rng.integers(0, 1000, (2, 64)).astype(np.int32)
  weights = rng.random((2, 64)).astype(np.float32)
  loss = lambda function: lambda *arguments: function(*arguments, 1e-3)[0] / 64
  add(
    "linear cross-entropy",
    loss(loss_api.linear_cross_entropy),
    loss(loss_reference.linear_cross_entropy),
    [normal(2, 64, 128), normal(128, 1000) / 11],
    (targets, weights),
    bars,
  )
  add(
    "log-probabilities and entropy",
    lambda *arguments: _joined(loss_api.token_log_probabilities(*arguments)),
    lambda *arguments: _joined(loss_reference.token_log_probabilities(*arguments)),
    [normal(2, 64, 128), normal(128, 1000) / 11],
    (targets,),
    bars,
  )
  teacher = normal(2, 64, 96).astype(np.float32), (normal(96, 1000) / 10).astype(np.float32)
  for kind in ("forward", "reverse", "jsd"):
    add(
      f"divergence, {kind}",
      lambda h, w, th, tw, kind=kind: loss_api.divergence(h, w, th, tw, kind)[0],
      lambda h, w, th, tw, kind=kind: loss_reference.divergence(h, w, th, tw, kind)[0],
      [normal(2, 64, 128), normal(128, 1000) / 11],
      teacher,
      bars,
    )
  return rows


def _joined(arrays: tuple[jax.Array, ...]) -> jax.Array:
  return jnp.concatenate([x.astype(jnp.float32).reshape(-1) for x in arrays])


def time_step(size: str, batch_size: int, repeats: int) -> dict[str, Any]:
  options: ConfigDict = pretrain_stage().optimizer
  model = model_config(f"qwen3-{size.lower()}").replace(dtype="bfloat16", remat="dots")
  program = TrainProgram(
    model=model,
    objective=next_token(),
    optimizer=make_optimizer(options),
    batch_shape=(batch_size, LENGTH),
    micro_batches=1,
    clip_norm=options.clip_norm,
  )
  mesh = make_mesh({"fsdp": -1})
  step = program.lower(mesh).compile()
  state = program.create_state(mesh, seed=0)
  batch = jax.device_put(random_batch(batch_size, LENGTH, model.vocab_size, DOCUMENTS), batch_sharding(mesh))
  learning_rate = jnp.float32(options.peak_lr)
  seconds, losses = [], []
  for _ in range(repeats + 2):
    start = time.perf_counter()
    state, metrics = step(state, batch, learning_rate)
    losses.append(float(metrics["loss"]))
    seconds.append(time.perf_counter() - start)
  if not losses[-1] < losses[0]:
    raise RuntimeError(f"the loss did not fall: {losses}")
  median = statistics.median(seconds[2:])
  peak = device_peak_flops(jax.devices()[0])
  return {
    "step_seconds": median,
    "tokens_per_second": program.tokens_per_step / median,
    "mfu": program.flops_per_step / median / (peak * mesh.size) if peak else None,
    "losses": losses,
    "memory_gib": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30,
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="0.6B")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--repeats", type=int, default=8)
  parser.add_argument("--json", type=Path)
  options = parser.parse_args()
  device = jax.devices()[0]
  print(f"{len(jax.devices())} x {device.device_kind}, jax {jax.__version__}")
  rows = errors()
  for row in rows:
    print(
      f"{row['name']:36s} {row['ours']:.2e}  bar {row['bar']:.0e}  {'holds' if row['holds'] else 'FAILS'}", flush=True
    )
  timed = {}
  for name in ("chosen attention", "blockwise attention"):
    if name == "blockwise attention":
      cudnn.supported = lambda query: False
    timed[name] = time_step(options.size, options.batch_size, options.repeats)
    print(name, {key: value for key, value in timed[name].items() if key != "losses"}, flush=True)
  if options.json:
    options.json.write_text(json.dumps({"device": device.device_kind, "rows": rows, "steps": timed}, indent=2) + "\n")
  return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
  raise SystemExit(main())
