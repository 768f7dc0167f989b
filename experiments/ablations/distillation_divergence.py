"""What an on-policy student minimises (report, section 4.5, says KL; Agarwal et al. 2024 compare).

`teacher=DIR` and `answers=DIR` are those of experiments/miniature_distillation.py.
"""

from ml_collections import ConfigDict

from experiments import miniature_distillation, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.objectives.distillation_settings import DIVERGENCES
from qwen3_jax.sweeps.study import grid

STUDIES = {
  "distillation_divergence": grid({"divergence": DIVERGENCES}, metric="validation/pass@1", maximize=True),
}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, teacher="teacher", answers="answers", divergence=DIVERGENCES)
  config = miniature_distillation.get_config(f"teacher={arguments.teacher},answers={arguments.answers}")
  config.name = f"divergence-{arguments.divergence}"
  config.stages.on_policy.distillation.divergence = arguments.divergence
  return recipes.finish(config, arguments)
