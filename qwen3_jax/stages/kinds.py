"""One interface to all kinds of stages."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.stages import pretrain, rl
from qwen3_jax.stages.stage import Stage
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.workdir import Workdir

# Supervised fine-tuning is next-token prediction on packed conversations, whose loss mask their corpora hold.
_MODULES: dict[str, ModuleType] = {"pretrain": pretrain, "sft": pretrain, "rl": rl}


def make_program(config: ConfigDict, name: str) -> TrainProgram:
  """The train step of stage `name` of a checked config; opens nothing."""
  return _MODULES[config.stages[name].kind].make_program(config, name)


def make_stage(
  config: ConfigDict,
  name: str,
  corpora: dict[str, Path],
  tokenizer: Tokenizer,
  mesh: Mesh,
  workdir: Workdir,
  previous: str | None,
) -> Stage:
  """Stage `name` of a checked config on `mesh`.

  `corpora` gives the folder of each prepared corpus, `previous` the stage whose parameters it starts from, if any.
  """
  if config.stages[name].kind == "rl":
    return rl.make_stage(config, name, tokenizer, mesh, workdir, previous)
  return pretrain.make_stage(config, name, corpora, tokenizer, mesh)


def trained_tokens(settings: ConfigDict) -> int:
  """What a stage trains on: its token budget in whole steps."""
  per_step = settings.batch_size * settings.sequence_length
  return settings.steps * per_step if settings.kind == "rl" else settings.tokens // per_step * per_step
