"""Load balancing over the global batch or within micro-batches (report, section 2; Qiu et al. 2025).

`scope=global` is the base, `scope=micro` counts experts in micro-batches of two sequences. The same experts, tokens and
weight of the loss; a micro-batch of one domain cannot be balanced without giving up what experts are good at.
"""

from ml_collections import ConfigDict

from experiments import miniature, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

STUDIES = {"lbl_scope": grid({"scope": ("global", "micro")})}
ROWS = 2  # of a micro-batch: one for each of the base's devices


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, scope=("global", "micro"))
  config = miniature.get_config("model=moe,post=none")
  config.name = f"lbl-{arguments.scope}"
  for stage in config.stages.values():
    stage.update(
      micro_batches=stage.batch_size // ROWS,
      balance_counts="exact" if arguments.scope == "global" else "micro",
    )
  return recipes.finish(config, arguments)
