"""The share of thinking samples in thinking-mode fusion, for which the report gives no number (section 4.3)."""

from ml_collections import ConfigDict

from experiments import miniature_fusion, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import grid

STUDIES = {"fusion_mix": grid({"thinking_share": (0.2, 0.5, 0.8)}, metric="validation/pass@1", maximize=True)}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, thinking_share=0.5)
  config = miniature_fusion.get_config()
  config.name = f"fusion-{arguments.thinking_share:g}"
  config.data.written.fusion.fusion.thinking_share = arguments.thinking_share
  return recipes.finish(config, arguments)
