"""Clip-higher (DAPO, Yu et al. 2025, section 3.1): how far above 1 a ratio counts; `clip_high=0.2` is symmetric.

A batch of rollouts makes four steps here, where the base makes one: ratios leave 1 only off-policy.
"""

from ml_collections import ConfigDict

from experiments import miniature_reasoning, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

MINIBATCHES = 4
STUDIES = {"clip_higher": grid({"clip_high": (0.2, 0.28, 0.4)}, metric="validation/pass@1", maximize=True)}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, clip_high=0.28)
  config = miniature_reasoning.get_config()
  config.name = f"clip-high-{arguments.clip_high:g}"
  rl = config.stages.reasoning_rl
  rl.grpo.clip_high = arguments.clip_high
  rl.update(
    minibatches=MINIBATCHES,
    batch_size=rl.batch_size // MINIBATCHES,
    steps=rl.steps * MINIBATCHES,
    evaluate_every=rl.evaluate_every * MINIBATCHES,
  )
  return recipes.finish(config, arguments)
