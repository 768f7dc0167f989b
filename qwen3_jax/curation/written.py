"""Conversations that a run's own models write, for its later stages."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from qwen3_jax.curation.fusion_pipeline import CONVERSATIONS, fusion_data
from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.workdir import Workdir


def write_conversations(config: ConfigDict, name: str, tokenizer: Tokenizer, workdir: Workdir) -> Path:
  """Writes `config.data.written[name]` with the newest checkpoint of its stage -> a file for the source `chat:`.

  What was written is not written again. Raises DataError that names the key.
  """
  folder = workdir.path / "written" / name
  conversations = folder / CONVERSATIONS
  if conversations.exists():
    return conversations
  key = f"data.written.{name}"
  if jax.process_count() > 1:
    raise DataError(f"{key}: written in one process, there are {jax.process_count()}; see fusion_data")
  from qwen3_jax.curation.model_judge import make_asker
  from qwen3_jax.fusion_data import read_non_thinking
  from qwen3_jax.loading import load_parameters
  from qwen3_jax.models.transformer import from_parameters
  from qwen3_jax.parameter_folder import find_checkpoint

  settings = config.data.written[name]
  written_by = workdir.stage(settings.stage)
  print(f"Writing {conversations} with the model of stage {settings.stage!r}", flush=True)
  try:
    samples = [sample for spec in settings.non_thinking for sample in read_non_thinking(spec, config.seed)]
    model_config, params = load_parameters(written_by, config.model.dtype, unroll_layers=config.model.unroll_layers)
    sampling = {of: settings[of] for of in ("temperature", "max_length", "max_new_tokens", "slots")}
    fusion_data(
      make_asker(from_parameters(model_config, params), tokenizer, **sampling),
      _problems(settings.problems),
      samples,
      FusionSettings(**settings.fusion.to_dict()),
      folder,
      config.seed,
      direct=_problems(settings.direct_answers),
      params=params,
      described={"checkpoint": str(find_checkpoint(written_by)), "dtype": config.model.dtype, **sampling},
    )
  except (ValueError, ImportError, OSError) as error:
    raise DataError(f"{key}: {error}") from error
  return conversations


def _problems(spec: str) -> list[Problem]:
  return open_problems(spec) if spec else []
