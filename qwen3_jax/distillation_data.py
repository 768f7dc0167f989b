"""A teacher's answers in both modes, for a student to learn from:

  python -m qwen3_jax.distillation_data --teacher=DIR --problems=SPEC --output=DIR --samples=4 --top_k=64

Asks every problem --samples times, --thinking_share of them with thinking, and keeps the right answers of good form in
OUTPUT/answers.jsonl, which the corpus source chat:OUTPUT/answers.jsonl reads. With --top_k their most likely tokens
under the teacher are stored, too, in OUTPUT/corpus, which prepared:OUTPUT/corpus reads. --answers takes answers that
others wrote, e.g. an endpoint; --teacher is then needed for --top_k alone. OUTPUT/report.json says what became of the
answers, and what storing few tokens loses. qwen3_jax/problems/sources.py has the forms of SPEC. The same command
continues after it was stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from qwen3_jax.curation.teacher_answers import (
  ANSWERS,
  KEEP,
  ROUNDS,
  TeacherSettings,
  given_answers,
  teacher_answers,
  teacher_engine,
)
from qwen3_jax.data.sources import SourceError
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.rollout.sampling import NOT_THINKING, THINKING

if TYPE_CHECKING:
  from qwen3_jax.data.tokenizer import Tokenizer
  from qwen3_jax.models.transformer import Transformer

_TEACHER = flags.DEFINE_string("teacher", "", "Folder of the teacher's checkpoint; a stage of a run is one.")
_PROBLEMS = flags.DEFINE_multi_string("problems", None, "What is asked, kind:location; may be repeated.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of what is made.", required=True)
_ANSWERS = flags.DEFINE_string("answers", "", "JSONL of answers to the problems, instead of asking the teacher.")
_SAMPLES = flags.DEFINE_integer("samples", TeacherSettings.samples, "Answers to each problem.", 1)
_THINKING = flags.DEFINE_float("thinking_share", TeacherSettings.thinking_share, "Of the answers: those that think.")
_PLAIN = flags.DEFINE_float("plain_share", TeacherSettings.plain_share, "Of those that think: asked without a flag.")
_KEEP = flags.DEFINE_enum("keep", TeacherSettings.keep, KEEP, "Right answers, or wrong ones, too.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Most likely tokens to store for each token of an answer; 0: none.", 0)
_VALIDATION = flags.DEFINE_float("validation_fraction", 0.02, "Share of that corpus kept for validation.")
_SHARDS = flags.DEFINE_integer("num_shards", 0, "Of that corpus; 0: one for 4,096 answers, at most 64.", 0)
_LIMIT = flags.DEFINE_integer("limit", 0, "Problems; 0: all.", 0)
_SEED = flags.DEFINE_integer("seed", TeacherSettings.seed, "Of sampling, and of which answers think.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder or file; the teacher's own unless given.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the computation.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "The report's for the mode (section 4.6) unless given.", 0.0)
_TOP_P = flags.DEFINE_float("top_p", None, "Likewise.")
_PRESENCE = flags.DEFINE_float("presence_penalty", None, "Likewise.")
_SLOTS = flags.DEFINE_integer("slots", 64, "Answers that are written at a time.", 1)
_LENGTH = flags.DEFINE_integer("max_length", 4096, "Tokens of a prompt and its answer.", 2)
_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", TeacherSettings.max_new_tokens, "Of an answer.", 1)
_SHARD_ANSWERS, _MOST_SHARDS = 4096, 64


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  from qwen3_jax.safetensors_io import WeightsError
  from qwen3_jax.workdir import Workdir, WorkdirError

  try:
    if not _TEACHER.value and (_TOP_K.value or not _ANSWERS.value):
      raise ValueError("--teacher: no checkpoint; only --answers without --top_k need none")
    settings = _settings()
    problems = [problem for spec in _PROBLEMS.value for problem in open_problems(spec)]
    with Workdir(_OUTPUT.value) as folder:
      _run(folder.path, problems[: _LIMIT.value or None], settings)
  except (ValueError, OSError, ImportError, SourceError, WeightsError, WorkdirError) as error:
    sys.exit("error: " + " ".join(str(error).split()))


def _settings() -> TeacherSettings:
  given = {"temperature": _TEMPERATURE.value, "top_p": _TOP_P.value, "presence_penalty": _PRESENCE.value}
  changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
  return TeacherSettings(
    samples=_SAMPLES.value,
    thinking_share=_THINKING.value,
    plain_share=_PLAIN.value,
    keep=_KEEP.value,
    seed=_SEED.value,
    max_new_tokens=_NEW_TOKENS.value,
    thinking=dataclasses.replace(THINKING, **changes),
    not_thinking=dataclasses.replace(NOT_THINKING, **changes),
    at_a_time=ROUNDS * _SLOTS.value,
  )


def _run(output: Path, problems: list[Problem], settings: TeacherSettings) -> None:
  from qwen3_jax.allocator import keep_freed_memory
  from qwen3_jax.chat import load
  from qwen3_jax.models.transformer import parameters
  from qwen3_jax.parameter_folder import find_checkpoint
  from qwen3_jax.task_progress import task_progress

  keep_freed_memory()
  console = Console(highlight=False)
  if _TEACHER.value:
    folder = Path(_TEACHER.value)
    model, tokenizer = load(folder, Path(_TOKENIZER.value) if _TOKENIZER.value else None, _DTYPE.value)
    teacher = f"{(find_checkpoint(folder) or folder).absolute()}, {_DTYPE.value}"  # of a stage, its newest
  with task_progress(console) as on_task:
    show = functools.partial(on_task, "answers")
    if _ANSWERS.value:
      report = given_answers(Path(_ANSWERS.value), problems, output, settings, on_progress=show)
    else:
      engine, params = teacher_engine(model, settings, _SLOTS.value, _LENGTH.value), parameters(model)
      report = teacher_answers(engine, params, tokenizer, problems, output, settings, teacher=teacher, on_progress=show)
      del engine
  kept = sum(report["totals"].get(outcome, 0) for outcome in ("kept", "kept_wrong"))
  if not kept:
    print_report(report, console)
    raise ValueError("none of the answers is kept")
  if _TOP_K.value:
    report = _store_predictions(output, report, model, tokenizer, teacher, kept)
  print_report(report, console)


def _store_predictions(
  output: Path, report: dict[str, Any], model: Transformer, tokenizer: Tokenizer, teacher: str, kept: int
) -> dict[str, Any]:
  """Writes OUTPUT/corpus, and what it loses into the report."""
  from qwen3_jax.curation.teacher_predictions import TeacherPredictions
  from qwen3_jax.data.prepare import prepare
  from qwen3_jax.workdir import write_json

  manifest = prepare(
    f"chat:{output / ANSWERS}",
    output / "corpus",
    tokenizer,
    validation_fraction=_VALIDATION.value,
    num_shards=_SHARDS.value or min(-(-kept // _SHARD_ANSWERS), _MOST_SHARDS),
    predictor=TeacherPredictions(model, tokenizer.vocab_size, _TOP_K.value, teacher),
  )
  report |= {"top_k": _TOP_K.value, "storage_error": manifest["storage_error"]}
  write_json(output / "report.json", report)
  return report


def print_report(report: dict[str, Any], console: Console) -> None:
  outcomes = list(report["totals"])
  table = Table("mode", "domain", *outcomes)
  for column in table.columns[2:]:
    column.justify = "right"
  for mode, domains in report["counts"].items():
    for domain, counts in domains.items():
      table.add_row(mode, domain, *(f"{counts.get(outcome, 0):,}" for outcome in outcomes))
  console.print(table)
  if "storage_error" in report:
    error = report["storage_error"]
    console.print(
      f"top {report['top_k']} of {error['tokens']:,} tokens: probability of the others {error['outside_mean']:.2e} "
      f"(at most {error['outside_max']:.2e}), rounding at most {error['rounding_max']:.2e} nats"
    )


if __name__ == "__main__":
  app.run(main)
