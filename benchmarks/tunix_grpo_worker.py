"""Tunix's own GRPO learner, one step at a time on request: the peer of `benchmarks/grpo_cpu.py` in its own environment.

  python benchmarks/tunix_grpo_worker.py '{"vocab_size": 256, ..., "prompts": 8, "samples": 4, "new_tokens": 128}'

Its Qwen3 model with random weights, its "vanilla" rollouts and its learner, which trains what it samples from: no
weights are copied. Without KL (beta 0) it neither has nor runs a reference model. Prints its version when the learner
is built; then, for every line it reads, takes one step and prints the mean reward once the parameters are updated. It
knows nothing of qwen3_jax, whose interpreter is another one.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import string
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix_model import Characters, model_config


class Reward:
  """How many characters of an answer are ASCII; remembers the mean of its last call."""

  __name__ = "ascii"  # the learner logs it under its name

  def __init__(self) -> None:
    self.mean = 0.0

  def __call__(self, prompts, completions: list[str], **_) -> list[float]:
    rewards = [float(sum(character < "\x80" for character in text)) for text in completions]
    self.mean = sum(rewards) / len(rewards)
    return rewards


def make_learner(shape: dict[str, Any], reward: Reward) -> GRPOLearner:
  config = model_config(shape)
  devices = np.array(jax.devices()).reshape(-1, 1)
  mesh = jax.sharding.Mesh(devices, ("fsdp", "tp"))
  roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
  with mesh:
    model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
  cluster = rl_cluster.RLCluster(
    actor=model,
    tokenizer=Characters(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(roles, mesh),
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adam(shape["learning_rate"], b1=shape["beta1"], b2=shape["beta2"], eps=shape["epsilon"]),
        eval_every_n_steps=1 << 30,
        max_steps=1 << 30,
      ),
      rollout_config=RolloutConfig(
        max_tokens_to_generate=shape["new_tokens"],
        max_prompt_length=shape["prompt_tokens"],
        kv_cache_size=shape["prompt_tokens"] + shape["new_tokens"],
        temperature=1.0,
        top_p=1.0,
      ),
    ),
  )
  algorithm = GRPOConfig(num_generations=shape["samples"], num_iterations=1, beta=0.0, epsilon=shape["clip"])
  return GRPOLearner(cluster, algorithm, reward)


def batches(shape: dict[str, Any], learner: GRPOLearner, reward: Reward) -> Iterator[dict[str, Any]]:
  """Prompts of one step for every line of the input; what came of them is printed when the learner wants the next."""
  choice = random.Random(0)
  cluster = learner.rl_cluster
  for number, _ in enumerate(sys.stdin):
    # Without a seed, its sampler draws with the same randomness in every step.
    cluster.cluster_config.rollout_config.seed = number
    characters = shape["prompt_tokens"] - 1  # the learner puts one before them
    prompts = ["".join(choice.choices(string.ascii_letters, k=characters)) for _ in range(shape["prompts"])]
    yield {"prompts": np.array(prompts)}
    jax.block_until_ready(nnx.state(cluster.actor_trainer.model, nnx.Param))
    print(json.dumps({"reward": reward.mean}), flush=True)


def main() -> None:
  shape = json.loads(sys.argv[1])
  reward = Reward()
  learner = make_learner(shape, reward)
  print(json.dumps({"version": importlib.metadata.version("google-tunix"), "jax": jax.__version__}), flush=True)
  learner.train(batches(shape, learner, reward))


if __name__ == "__main__":
  main()
