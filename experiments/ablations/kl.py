"""A penalty for leaving the cold start's policy in reasoning RL: GRPO's KL coefficient, 0 in the base."""

from ml_collections import ConfigDict

from experiments import miniature_reasoning, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

STUDIES = {"kl": grid({"kl": (0.0, 0.01, 0.1)}, metric="validation/pass@1", maximize=True)}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, kl=0.0)
  config = miniature_reasoning.get_config()
  config.name = f"kl-{arguments.kl:g}"
  config.stages.reasoning_rl.grpo.kl_coefficient = arguments.kl
  return recipes.finish(config, arguments)
