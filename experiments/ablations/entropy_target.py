"""The entropy that reasoning RL is held at, in nats a token; `control=off` leaves it alone (report, section 4.2)."""

from ml_collections import ConfigDict

from experiments import miniature_reasoning, recipes
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.sweeps.study import Study

ARMS = ({"control": "off"}, {"target": 0.02}, {"target": 0.05}, {"target": 0.1})
STUDIES = {"entropy_target": Study(ARMS, metric="validation/pass@1", maximize=True)}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, control=("on", "off"), target=0.02)
  config = miniature_reasoning.get_config()
  entropy = config.stages.reasoning_rl.entropy
  if arguments.control == "on":
    config.name = f"entropy-{arguments.target:g}"
    entropy.target = arguments.target
  else:
    config.name = "entropy-free"
    entropy.gain = 0.0
  return recipes.finish(config, arguments)
