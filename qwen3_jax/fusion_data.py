"""The data of thinking-mode fusion (Qwen3 report, section 4.3):

  python -m qwen3_jax.fusion_data --checkpoint=DIR --problems=SPEC --non_thinking=CATEGORY:FILE,... \
    --judge=URL#MODEL --output=DIR

Thinking samples are the checkpoint's own right answers to the problems (forms of SPEC: qwen3_jax/problems/sources.py).
Samples without thinking come from JSONL files of {"messages"} or {"prompt", "answer"} in one of the categories

  code mathematics instruction_following multilingual creative_writing question_answering role_play

or `translation`, of pairs such as {"en": "Good day", "fr": "Bonjour"}; and from --direct_answers, problems whose
references are the answers. --judge checks the files' samples with checklists, --writer answers prompts without an
answer; each is URL#MODEL, an OpenAI-compatible endpoint up to /v1 (its key is read from OPENAI_API_KEY), or the folder
of a checkpoint. --set changes settings, e.g. --set=thinking_share=0.6; curation/fusion_settings.py has all.

OUTPUT/conversations.jsonl is for the corpus source chat:OUTPUT/conversations.jsonl, OUTPUT/report.json says what it is
made of. The same command continues after it was stopped.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from qwen3_jax import nearest
from qwen3_jax.curation.ask import CurationError
from qwen3_jax.curation.fusion_samples import CATEGORIES, Sample, read_samples
from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.curation.translation import read_pairs, translation_tasks
from qwen3_jax.data.sources import SourceError
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems

if TYPE_CHECKING:
  from qwen3_jax.language_models.language_model import LanguageModel

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the model; a stage of a run is one.", required=True)
_PROBLEMS = flags.DEFINE_multi_string("problems", None, "Of thinking samples; may be repeated.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of what is made.", required=True)
_NON_THINKING = flags.DEFINE_list("non_thinking", [], "CATEGORY:FILE, separated by commas.")
_DIRECT = flags.DEFINE_multi_string("direct_answers", [], "Problems answered by their references; may be repeated.")
_JUDGE = flags.DEFINE_string("judge", "", "Model that checks with checklists: URL#MODEL or a folder.")
_WRITER = flags.DEFINE_string("writer", "", "Model that writes answers: URL#MODEL or a folder.")
_SET = flags.DEFINE_multi_string("set", [], "NAME=VALUE of the settings; may be repeated.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is drawn.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder or file; the checkpoint's own unless given.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the computation.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.6, "Of thinking samples; the report's for thinking.", 0.0)
_SLOTS = flags.DEFINE_integer("slots", 64, "Answers that are written at a time.", 1)
_LENGTH = flags.DEFINE_integer("max_length", 4096, "Tokens of a prompt and its answer.", 2)
_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 2048, "Of an answer.", 1)
TRANSLATION = "translation"


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  from qwen3_jax.safetensors_io import WeightsError
  from qwen3_jax.workdir import Workdir, WorkdirError

  try:
    settings = settings_of(_SET.value)
    samples = [sample for spec in _NON_THINKING.value for sample in read_non_thinking(spec, _SEED.value)]
    problems = [problem for spec in _PROBLEMS.value for problem in open_problems(spec)]
    direct = [problem for spec in _DIRECT.value for problem in open_problems(spec)]
    _check(settings, samples, direct)
    with Workdir(_OUTPUT.value) as folder:
      _run(folder.path, settings, samples, problems, direct)
  except (ValueError, OSError, ImportError, SourceError, WeightsError, WorkdirError, CurationError) as error:
    sys.exit("error: " + " ".join(str(error).split()))


def settings_of(changes: Sequence[str]) -> FusionSettings:
  """Of NAME=VALUE texts. Raises ValueError for what is none."""
  names = {field.name for field in dataclasses.fields(FusionSettings)}
  given: dict[str, Any] = {}
  for change in changes:
    name, equals, value = change.partition("=")
    if name not in names or not equals:
      raise ValueError(f"--set={change}: expected NAME=VALUE.{nearest.or_all(name, names)}")
    try:
      given[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      given[name] = value
  return FusionSettings(**given)


def read_non_thinking(spec: str, seed: int) -> list[Sample]:
  """The samples of CATEGORY:FILE. Raises ValueError, or OSError naming the file."""
  category, _, file = spec.partition(":")
  kinds = (*CATEGORIES, TRANSLATION)
  if category not in kinds or not file:
    raise ValueError(f"--non_thinking={spec}: expected CATEGORY:FILE.{nearest.or_all(category, kinds)}")
  path = Path(file)
  if not path.is_file():
    raise ValueError(f"--non_thinking={spec}: no such file")
  return translation_tasks(read_pairs(path), seed) if category == TRANSLATION else read_samples(category, path)


def _check(settings: FusionSettings, samples: Sequence[Sample], direct: Sequence[Problem]) -> None:
  """What can be known before anything is loaded."""
  for name, value in (("checkpoint", _CHECKPOINT.value), ("tokenizer", _TOKENIZER.value)):
    if value and not Path(value).exists():
      raise ValueError(f"--{name}={value}: no such file or folder")
  for name, value in (("judge", _JUDGE.value), ("writer", _WRITER.value)):
    is_url = value.startswith(("http://", "https://"))
    if is_url and not value.partition("#")[2]:
      raise ValueError(f"--{name}={value}: names no model; expected URL#MODEL")
    if value and not is_url and not Path(value).is_dir():
      raise ValueError(f"--{name}={value}: no such folder, and no URL#MODEL")
  if settings.thinking_share < 1 and not samples and not direct:
    raise ValueError("--non_thinking, --direct_answers: neither is given, so there are no samples without thinking")
  lacks = next((sample for sample in samples if not sample.turns[-1].response), None)
  if lacks is not None and not _WRITER.value:
    raise ValueError(f"--non_thinking: {lacks.category} has prompts without an answer; --writer names who writes it")


def _run(
  output: Path,
  settings: FusionSettings,
  samples: Sequence[Sample],
  problems: Sequence[Problem],
  direct: Sequence[Problem],
) -> None:
  from qwen3_jax.allocator import keep_freed_memory
  from qwen3_jax.chat import load
  from qwen3_jax.curation.fusion_pipeline import fusion_data
  from qwen3_jax.curation.model_judge import make_asker
  from qwen3_jax.models.transformer import parameters
  from qwen3_jax.parameter_folder import find_checkpoint
  from qwen3_jax.task_progress import task_progress

  keep_freed_memory()
  folder = Path(_CHECKPOINT.value)
  model, tokenizer = load(folder, Path(_TOKENIZER.value) if _TOKENIZER.value else None, _DTYPE.value)
  sampling: dict[str, Any] = {
    "temperature": _TEMPERATURE.value,
    "max_length": _LENGTH.value,
    "max_new_tokens": _NEW_TOKENS.value,
    "slots": _SLOTS.value,
  }
  asker = make_asker(model, tokenizer, **sampling)
  judge = _language_model(_JUDGE.value) if _JUDGE.value else None
  writer = judge if _WRITER.value == _JUDGE.value else _language_model(_WRITER.value) if _WRITER.value else None
  console = Console(highlight=False)
  with task_progress(console) as show:
    report = fusion_data(
      asker,
      problems,
      samples,
      settings,
      output,
      _SEED.value,
      direct=direct,
      params=parameters(model),
      # Of a stage, its newest checkpoint: the answers are that step's.
      described={"checkpoint": str((find_checkpoint(folder) or folder).absolute()), "dtype": _DTYPE.value, **sampling},
      judge=judge,
      writer=writer,
      on_progress=show,
    )
  print_report(report, console)


def _language_model(spec: str) -> LanguageModel:
  url, hash, name = spec.partition("#")
  if hash and url.startswith(("http://", "https://")):
    from qwen3_jax.language_models.endpoint import Endpoint

    return Endpoint(url, name, api_key=os.environ.get("OPENAI_API_KEY", ""))
  from qwen3_jax.chat import load
  from qwen3_jax.language_models.local import LocalModel
  from qwen3_jax.parameter_folder import find_checkpoint

  model, tokenizer = load(Path(spec), None, _DTYPE.value)
  return LocalModel(model, tokenizer, str((find_checkpoint(Path(spec)) or Path(spec)).absolute()))


def print_report(report: dict[str, Any], console: Console) -> None:
  thinking = report["thinking"]
  console.print(f"{thinking['answers']:,} answers to {thinking['problems']:,} problems:")
  for outcome, count in thinking["outcomes"].items():
    console.print(f"  {count:>8,}  {outcome}")
  console.print(f"  {thinking['problems_without']:,} problems have none that is kept")
  for check, removed in report["removed"].items():
    console.print(f"{removed['count']:,} samples removed: {check}")
  if report["unchecked"]:
    console.print(f"{report['unchecked']:,} samples were checked by nobody; --judge names a model")
  table = Table("conversations", "", "number")
  table.columns[2].justify = "right"
  for kind in ("mode", "category", "turns"):
    for name, count in report["conversations"][f"by_{kind}"].items():
      table.add_row(kind, str(name), f"{count:,}")
  console.print(table)
  shares = Table("share", "asked for", "is")
  for name, share in report["shares"].items():
    shares.add_row(name, f"{report['settings'][name]:.3f}", "none" if share is None else f"{share:.3f}")
  console.print(shares)


if __name__ == "__main__":
  app.run(main)
