"""One interface to all kinds of stages."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.config import ROLLOUT_KINDS, WRITTEN
from qwen3_jax.curation.written import write_conversations
from qwen3_jax.data.corpora import prepare_written
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.distillation.teacher_program import TeacherProgram
from qwen3_jax.stages import distill, pretrain, rl
from qwen3_jax.stages.stage import Stage
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.workdir import Workdir

# Supervised fine-tuning is next-token prediction on packed conversations, whose loss mask their corpora hold.
_MODULES: dict[str, ModuleType] = {"pretrain": pretrain, "sft": pretrain, "rl": rl, "distill": distill}


def make_program(config: ConfigDict, name: str) -> TrainProgram:
  """The train step of stage `name` of a checked config; opens nothing."""
  return _MODULES[config.stages[name].kind].make_program(config, name)


def teacher_programs(config: ConfigDict, name: str) -> dict[str, TeacherProgram]:
  """What the teachers of stage `name` run for each of its steps; opens nothing."""
  return distill.teacher_programs(config, name) if config.stages[name].kind == "distill" else {}


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
  kind = config.stages[name].kind
  if kind == "rl":
    return rl.make_stage(config, name, tokenizer, mesh, workdir, previous)
  if kind == "distill":
    return distill.make_stage(config, name, tokenizer, mesh, workdir)
  return pretrain.make_stage(config, name, corpora, tokenizer, mesh)


def check_files(config: ConfigDict, name: str, tokenizer: Tokenizer) -> None:
  """Raises DataError if stage `name` would later miss a file that is there neither now nor by then."""
  if config.stages[name].kind == "distill":
    distill.check_files(config, name, tokenizer)


def written_corpora(config: ConfigDict, name: str, tokenizer: Tokenizer, workdir: Workdir) -> dict[str, Path]:
  """The prepared folders of the corpora of stage `name` that the run itself writes; writes them."""
  found = {}
  for corpus in config.stages[name].get("mixture", {}):
    source = config.data.corpora[corpus].source
    if source.startswith(WRITTEN):
      conversations = write_conversations(config, source.removeprefix(WRITTEN), tokenizer, workdir)
      found[corpus] = prepare_written(config, corpus, conversations, workdir.path, tokenizer)
  return found


def trained_tokens(settings: ConfigDict) -> int:
  """What a stage trains on: its token budget in whole steps."""
  per_step = settings.batch_size * settings.sequence_length
  return settings.steps * per_step if settings.kind in ROLLOUT_KINDS else settings.tokens // per_step * per_step
