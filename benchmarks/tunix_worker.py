"""Tunix's own sampler, one call at a time on request: the peer of `benchmarks/rollout_cpu.py` in its own environment.

  python benchmarks/tunix_worker.py '{"vocab_size": 256, ..., "prompts": 32, "prompt_tokens": 32, "new_tokens": 128}'

Its Qwen3 model with random weights, its KV cache of exactly the length needed, and sampling at temperature 1, log
probabilities returned as its GRPO asks for them. Prints its version when the sampler is built; then, for every line it
reads, generates once and prints how many tokens that gave. It knows nothing of qwen3_jax, whose interpreter is another
one.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import sys

import jax
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3 import model as qwen3
from tunix_model import Characters, model_config


def main() -> None:
  shape = json.loads(sys.argv[1])
  config = model_config(shape)
  model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
  # The prompt, what the sampler puts before it, and the answer.
  length = 2 * shape["prompt_tokens"] + shape["new_tokens"]
  cache = CacheConfig(length, config.num_layers, config.num_kv_heads, config.head_dim)
  sampler = Sampler(model, Characters(), cache)
  print(json.dumps({"version": importlib.metadata.version("google-tunix"), "jax": jax.__version__}), flush=True)
  choice = random.Random(0)
  for seed, _ in enumerate(sys.stdin):
    prompts = ["".join(chr(choice.randrange(2, 256)) for _ in range(shape["prompt_tokens"] - 1))
               for _ in range(shape["prompts"])]  # fmt: skip
    output = sampler(
      prompts,
      max_generation_steps=shape["new_tokens"],
      max_prompt_length=shape["prompt_tokens"],
      return_logprobs=True,
      temperature=1.0,
      top_p=1.0,
      seed=seed,
    )
    print(json.dumps({"tokens": sum(len(tokens) for tokens in output.tokens)}), flush=True)


if __name__ == "__main__":
  main()
