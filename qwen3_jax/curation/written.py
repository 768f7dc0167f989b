"""Conversations that a run's own models write, for its later stages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from qwen3_jax.config import model_settings
from qwen3_jax.curation.fusion_pipeline import CONVERSATIONS, fusion_data
from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.curation.teacher_answers import ANSWERS, ROUNDS, TeacherSettings, teacher_answers, teacher_engine
from qwen3_jax.data.records import DataError
from qwen3_jax.data.shared_storage import write_for_all
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.transformer import Transformer, from_parameters, parameters
from qwen3_jax.on_task import OnTask
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.task_progress import task_progress
from qwen3_jax.workdir import Workdir


def write_conversations(config: ConfigDict, name: str, tokenizer: Tokenizer, workdir: Workdir) -> Path:
  """Writes `config.data.written[name]` with the newest checkpoint of its stage -> a file for the source `chat:`.

  What was written is not written again. With several processes the first writes, with the model on one of its devices.
  Raises DataError that names the key.
  """
  conversations = workdir.path / "written" / name / _KINDS[config.data.written[name].kind].file

  def write() -> None:
    if not conversations.exists():
      _write(config, name, tokenizer, workdir, conversations)

  write_for_all(conversations, write)
  return conversations


def _write(config: ConfigDict, name: str, tokenizer: Tokenizer, workdir: Workdir, conversations: Path) -> None:
  settings = config.data.written[name]
  from qwen3_jax.loading import load_parameters
  from qwen3_jax.parameter_folder import find_checkpoint

  written_by = workdir.stage(settings.stage)
  print(f"Writing {conversations} with the model of stage {settings.stage!r}", flush=True)
  try:
    of_stage = model_settings(config, settings.stage)
    model_config, params = load_parameters(written_by, of_stage.dtype, unroll_layers=of_stage.unroll_layers)
    with task_progress() as on_task:
      model = from_parameters(model_config, params)
      described = {"checkpoint": str(find_checkpoint(written_by)), "dtype": of_stage.dtype}
      task = _Task(settings, model, tokenizer, conversations.parent, config.seed, described, on_task)
      _KINDS[settings.kind].write(task)
  except (ValueError, ImportError, OSError) as error:
    raise DataError(f"data.written.{name}: {error}") from error


class _Task(NamedTuple):
  settings: ConfigDict  # of `config.data.written`
  model: Transformer
  tokenizer: Tokenizer
  folder: Path
  seed: int
  described: dict[str, str]  # the model
  on_task: OnTask


def _fusion(task: _Task) -> None:
  from qwen3_jax.curation.model_judge import make_asker
  from qwen3_jax.fusion_data import read_non_thinking

  samples = [sample for spec in task.settings.non_thinking for sample in read_non_thinking(spec, task.seed)]
  sampling = {of: task.settings[of] for of in ("temperature", "max_length", "max_new_tokens", "slots")}
  fusion_data(
    make_asker(task.model, task.tokenizer, **sampling),
    _problems(task.settings.problems),
    samples,
    FusionSettings(**task.settings.fusion.to_dict()),
    task.folder,
    task.seed,
    direct=_problems(task.settings.direct_answers),
    params=parameters(task.model),
    described={**task.described, **sampling},
    on_progress=task.on_task,
  )


def _answers(task: _Task) -> None:
  sampling = SamplingParams(temperature=task.settings.temperature, top_p=task.settings.top_p)
  of_teacher = TeacherSettings(
    samples=task.settings.samples,
    thinking_share=task.settings.thinking_share,
    plain_share=task.settings.plain_share,
    seed=task.seed,
    max_new_tokens=task.settings.max_new_tokens,
    thinking=sampling,
    not_thinking=sampling,
    at_a_time=ROUNDS * task.settings.slots,
  )
  report = teacher_answers(
    teacher_engine(task.model, of_teacher, task.settings.slots, task.settings.max_length),
    parameters(task.model),
    task.tokenizer,
    _problems(task.settings.problems),
    task.folder,
    of_teacher,
    teacher=", ".join(task.described.values()),
    on_progress=functools.partial(task.on_task, "answers"),
  )
  if not report["totals"].get("kept"):
    raise ValueError(f"none of the answers of stage {task.settings.stage!r} is right and of good form")


class _Kind(NamedTuple):
  file: str  # of the conversations
  write: Callable[[_Task], None]


_KINDS = {
  "fusion": _Kind(CONVERSATIONS, _fusion),
  "answers": _Kind(ANSWERS, _answers),
}


def _problems(spec: str) -> list[Problem]:
  return open_problems(spec) if spec else []
