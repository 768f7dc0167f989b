"""Rollouts on a CPU: tokens/s beside Tunix's sampler, and continuous beside static batching.

  python benchmarks/rollout_cpu.py [--tunix-python=PATH] [--json=FILE]

First 8 prompts x 4 samples of 128 new tokens, as a GRPO step takes them, on a model of 4 layers and hidden size 256;
Tunix runs in its own interpreter, one call at a time between ours. Then the same engine on answers of 16..256 tokens:
with slots refilled as they end, and in batches that each wait for their slowest. Nothing may be compiled after the
first run of each.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from train_cpu import Compilations, print_table, row

from qwen3_jax.allocator import keep_freed_memory
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import initialize
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.request import Request
from qwen3_jax.sharding import make_mesh

MODEL = ModelConfig(
  name="4 layers",
  vocab_size=256,
  num_layers=4,
  hidden_size=256,
  intermediate_size=768,
  num_heads=8,
  num_kv_heads=4,
  head_dim=64,
  tie_word_embeddings=False,
  unroll_layers=True,
)
PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 8, 4, 32, 128
SHORT_PROMPT, SHORTEST, LONGEST, ANSWERS = 8, 16, 256, 512
TUNIX_BAR, CONTINUOUS_BAR = 3.0, 1.8
SLOTS = 64  # of the second part


def engine(slots: int, prompt: int, new: int, devices: int) -> Engine:
  mesh = make_mesh({"data": devices}, jax.devices()[:devices]) if devices > 1 else None
  settings = EngineSettings(
    slots=slots, max_length=prompt + new, steps=16, adjustments=False, prefill_rows=8, prefill_length=prompt
  )
  made = Engine(MODEL, settings, mesh=mesh)
  made.update(initialize(MODEL, 0))
  made.warm_up()
  return made


def grpo_requests(rng: np.random.Generator) -> list[Request]:
  prompts = rng.integers(0, MODEL.vocab_size, (PROMPTS, PROMPT_TOKENS)).tolist()
  return [Request(prompt, NEW_TOKENS, seed=int(rng.integers(2**31))) for prompt in prompts for _ in range(SAMPLES)]


def answers_of_all_lengths(rng: np.random.Generator, known: bool) -> list[Request]:
  """`known`: whether the engine knows where they will end, or an end comes up like an end token."""
  prompts = rng.integers(0, MODEL.vocab_size, (ANSWERS, SHORT_PROMPT)).tolist()
  lengths = rng.integers(SHORTEST, LONGEST + 1, ANSWERS).tolist()
  if known:
    return [Request(prompt, length, seed=i) for i, (prompt, length) in enumerate(zip(prompts, lengths))]
  return [
    Request(prompt, LONGEST, seed=i, ends_at=EndsAfter(length))
    for i, (prompt, length) in enumerate(zip(prompts, lengths))
  ]


class EndsAfter:
  def __init__(self, length: int):
    self._left = length

  def __call__(self, tokens: list[int]) -> int | None:
    ends = self._left if self._left <= len(tokens) else None
    self._left -= len(tokens)
    return ends


def count_tokens(results) -> int:
  return sum(len(result.tokens) for result in results)


def static_batches(made: Engine, requests: list[Request]) -> int:
  """As a sampler does that starts the next batch when the last is done."""
  batches = (requests[i : i + made.slots] for i in range(0, len(requests), made.slots))
  return sum(count_tokens(made.run(batch)) for batch in batches)


class Tunix:
  """Its sampler in a process of its own: one call for every line that it is sent."""

  def __init__(self, interpreter: Path):
    shape = {
      "vocab_size": MODEL.vocab_size,
      "num_layers": MODEL.num_layers,
      "hidden_size": MODEL.hidden_size,
      "intermediate_size": MODEL.intermediate_size,
      "num_heads": MODEL.num_heads,
      "num_kv_heads": MODEL.num_kv_heads,
      "head_dim": MODEL.head_dim,
      "prompts": PROMPTS * SAMPLES,
      "prompt_tokens": PROMPT_TOKENS,
      "new_tokens": NEW_TOKENS,
    }
    worker = Path(__file__).with_name("tunix_worker.py")
    command = [str(interpreter), str(worker), json.dumps(shape)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    self.version = self._read()["version"]

  def _read(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    for line in self._process.stdout:
      if line.startswith("{"):
        return json.loads(line)
    raise RuntimeError(f"the worker ended with {self._process.wait()}")

  def __call__(self) -> int:
    assert self._process.stdin is not None
    self._process.stdin.write("\n")
    return self._read()["tokens"]

  def close(self) -> None:
    self._process.kill()


def measure(runs: dict[str, Callable[[], int]], repeats: int) -> tuple[dict[str, float], int]:
  """Median tokens/s of each after a first run, taken in turn; programs compiled after the first runs."""
  for run in runs.values():
    run()
  compilations = Compilations()
  speeds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      start = time.perf_counter()
      tokens = run()
      speeds[name].append(tokens / (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in speeds.items()}, compilations.count


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--devices", type=int, default=len(os.sched_getaffinity(0)), help="virtual devices of ours")
  parser.add_argument("--tunix-python", type=Path, metavar="PATH", help="interpreter that has Tunix")
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  keep_freed_memory()
  jax.config.update("jax_num_cpu_devices", arguments.devices)
  rng = np.random.default_rng(0)
  grpo = engine(PROMPTS * SAMPLES, PROMPT_TOKENS, NEW_TOKENS, arguments.devices)
  runs: dict[str, Callable[[], int]] = {"ours": lambda: count_tokens(grpo.run(grpo_requests(rng)))}
  tunix = Tunix(arguments.tunix_python) if arguments.tunix_python else None
  if tunix is not None:
    runs["tunix"] = tunix
  speeds, compilations = measure(runs, arguments.repeats)
  if tunix is not None:
    tunix.close()

  mixed = engine(SLOTS, SHORT_PROMPT, LONGEST, arguments.devices)
  known = answers_of_all_lengths(np.random.default_rng(1), known=True)
  batching, more = measure(
    {
      "known": lambda: count_tokens(mixed.run(known)),
      "unknown": lambda: count_tokens(mixed.run(answers_of_all_lengths(np.random.default_rng(1), known=False))),
      "static": functools.partial(static_batches, mixed, known),
    },
    max(3, arguments.repeats // 2),
  )
  name = f"Tunix {tunix.version}" if tunix else "Tunix"
  rows = [
    row("8 x 4 x 128 tokens", "tokens/s", speeds["ours"], speeds.get("tunix"), name, TUNIX_BAR),
    row("16..256 tokens", "tokens/s", batching["known"], batching["static"], "static batches", CONTINUOUS_BAR),
    row("  end unforeseen", "tokens/s", batching["unknown"], batching["static"], "static batches", None),
    row("compilations", "count", 1.0 + compilations + more, 1.0, "one", None) | {"holds": compilations + more == 0},
  ]
  print_table(rows)
  if arguments.json:
    machine = (
      f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, jax {jax.__version__}"
    )
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
  sys.exit(0 if all(r["holds"] is not False for r in rows) else 1)


if __name__ == "__main__":
  main()
