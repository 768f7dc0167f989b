"""The cold start's size before reasoning RL, which the report keeps small in samples and steps (section 4.1).

`size` multiplies the base's traces and steps.
"""

from ml_collections import ConfigDict

from experiments import miniature_reasoning, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

TASK = miniature_reasoning.TASKS["cups"]
STUDIES = {"cold_start_size": grid({"size": (0.25, 0.5, 1.0, 2.0)}, metric="validation/pass@1", maximize=True)}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, size=1.0)
  config = miniature_reasoning.get_config("task=cups")
  config.name = f"cold-start-{arguments.size:g}"
  resized = TASK._replace(traces=round(TASK.traces * arguments.size))
  config.data.corpora.traces.source = miniature_reasoning.traces_source(resized)
  config.stages.cold_start.tokens = round(config.stages.cold_start.tokens * arguments.size)
  return recipes.finish(config, arguments)
