"""The z-loss, weight of log(Z)^2 in pre-training (Chowdhery et al. 2022, section 5): 0 is the base."""

from ml_collections import ConfigDict

from experiments import miniature, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

STUDIES = {"z_loss": grid({"z_loss": (0.0, 1e-4, 1e-3, 1e-2)})}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, z_loss=0.0)
  config = miniature.get_config("post=none")
  config.name = f"z-loss-{arguments.z_loss:g}"
  for stage in config.stages.values():
    stage.z_loss = arguments.z_loss
  return recipes.finish(config, arguments)
