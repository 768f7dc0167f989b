"""QK-Norm, which Qwen3 adds for stable training (report, section 2), on or off, at three learning rates."""

from ml_collections import ConfigDict

from experiments import miniature, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

STUDIES = {"qk_norm": grid({"qk_norm": (True, False), "config.stages.s1.optimizer.peak_lr": (3e-3, 1e-2, 3e-2)})}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, qk_norm=True)
  config = miniature.get_config("post=none")
  config.name = f"qk-norm-{'on' if arguments.qk_norm else 'off'}"
  config.model.qk_norm = arguments.qk_norm
  return recipes.finish(config, arguments)
