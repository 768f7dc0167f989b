"""Learning-rate schedules at one peak and one budget: S1 of the base alone, by wsd, cosine or a constant rate.

wsd decays over the last fifth (Hu et al. 2024), cosine throughout, both to a tenth of the peak.
"""

from ml_collections import ConfigDict

from experiments import miniature, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

SCHEDULES = ("wsd", "cosine", "constant")
STUDIES = {"schedule": grid({"schedule": SCHEDULES})}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, schedule=SCHEDULES)
  config = miniature.get_config("post=none")
  config.name = f"schedule-{arguments.schedule}"
  config.pipeline = ("s1",)
  optimizer = config.stages.s1.optimizer
  optimizer.update(schedule=arguments.schedule, final_lr=optimizer.peak_lr / 10, decay_fraction=0.2)
  return recipes.finish(config, arguments)
