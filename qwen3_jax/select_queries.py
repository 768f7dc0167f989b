"""Chooses problems for reinforcement learning by how often a model solves them:

  python -m qwen3_jax.select_queries --checkpoint=DIR --problems=SPEC --exclude=FILE.jsonl --count=3995 --samples=16 \
    --output=FILE.jsonl

Answers every problem --samples times and chooses those that are unused, learnable, as challenging as possible and of
many sub-domains; qwen3_jax/curation/queries.py has the rules, qwen3_jax/problems/sources.py the forms of SPEC. Pass
rates are kept as they come, so the same command continues after it was stopped. The choice goes to --output, what it
was made of to FILE.report.json.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from qwen3_jax.curation.queries import REPORT_COUNT, Rule, candidates_of, describe, read_used, select
from qwen3_jax.data.sources import SourceError
from qwen3_jax.problems.sources import open_problems

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the model; a stage of a run is one.", required=True)
_PROBLEMS = flags.DEFINE_multi_string("problems", None, "Candidates, kind:location; may be repeated.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file of the problems chosen.", required=True)
_EXCLUDE = flags.DEFINE_multi_string("exclude", [], "JSONL of problems or conversations used before; may be repeated.")
_RATES = flags.DEFINE_string("pass_rates", "", "File of the pass rates; beside --output unless given.")
_RANDOM = flags.DEFINE_string("random_output", "", "JSONL file of as many candidates at random, for comparison.")
_COUNT = flags.DEFINE_integer("count", REPORT_COUNT, "Problems to choose.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 16, "Answers to each problem.", 2)
_LEVEL = flags.DEFINE_float("level", Rule.level, "Of the confidence interval of a pass rate.")
_LEAST = flags.DEFINE_float("least", Rule.least, "Pass rates must be above; the rate of guessing, where one can guess.")
_MOST = flags.DEFINE_float("most", Rule.most, "Pass rates must be below.")
_SEED = flags.DEFINE_integer("seed", 0, "Of sampling, and of the order of equal pass rates.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder or file; the checkpoint's own unless given.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the computation.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of sampling: what training will sample with.", 0.0)
_SLOTS = flags.DEFINE_integer("slots", 64, "Answers that are written at a time.", 1)
_LENGTH = flags.DEFINE_integer("max_length", 4096, "Tokens of a prompt and its answer.", 2)
_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 2048, "Of an answer; with a budget, after the thinking.", 1)
_BUDGET = flags.DEFINE_integer("thinking_budget", None, "Tokens of thinking before the model must answer.", 0)
_THINKING = flags.DEFINE_bool("thinking", True, "Whether the model thinks.")
_ROUNDS = 4  # of answers, between two looks at what is done


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  from qwen3_jax.safetensors_io import WeightsError

  try:
    _run(Path(_OUTPUT.value))
  except (ValueError, OSError, ImportError, SourceError, WeightsError) as error:
    sys.exit("error: " + " ".join(str(error).split()))


def _run(output: Path) -> None:
  rule = Rule(_COUNT.value, _LEVEL.value, _LEAST.value, _MOST.value, _SEED.value)
  used = read_used(map(Path, _EXCLUDE.value))
  problems = [problem for spec in _PROBLEMS.value for problem in open_problems(spec)]
  candidates, dropped = candidates_of(problems, used, rule.seed)

  from qwen3_jax.allocator import keep_freed_memory
  from qwen3_jax.chat import load
  from qwen3_jax.curation.model_judge import judge_of, make_asker
  from qwen3_jax.curation.pass_rates import measure_pass_rates
  from qwen3_jax.parameter_folder import find_checkpoint
  from qwen3_jax.problems.records import write_problems
  from qwen3_jax.task_progress import task_progress
  from qwen3_jax.workdir import write_json

  keep_freed_memory()
  folder = Path(_CHECKPOINT.value)
  model, tokenizer = load(folder, Path(_TOKENIZER.value) if _TOKENIZER.value else None, _DTYPE.value)
  checkpoint = str((find_checkpoint(folder) or folder).absolute())  # of a stage, its newest: pass rates are that step's
  sampling: dict[str, Any] = {
    "temperature": _TEMPERATURE.value,
    "max_length": _LENGTH.value,
    "max_new_tokens": _NEW_TOKENS.value,
    "thinking_budget": _BUDGET.value,
    "enable_thinking": _THINKING.value,
  }
  asker = make_asker(model, tokenizer, slots=_SLOTS.value, **sampling)
  console = Console(highlight=False)
  with task_progress(console) as on_task:
    rates = measure_pass_rates(
      candidates,
      judge_of(asker, _SAMPLES.value, rule.seed),
      Path(_RATES.value or f"{output}.pass_rates.jsonl"),
      {
        "checkpoint": checkpoint,
        "dtype": _DTYPE.value,
        "samples": _SAMPLES.value,
        "seed": rule.seed,
        **sampling,
      },
      at_a_time=max(1, _ROUNDS * _SLOTS.value // _SAMPLES.value),
      on_progress=functools.partial(on_task, "pass rates"),
    )
  selection = select(candidates, rates, rule)
  if not selection.chosen:
    raise ValueError(f"none of {len(candidates)} candidates can be chosen: {selection.dropped}")
  write_problems(output, selection.chosen)
  if _RANDOM.value:
    write_problems(Path(_RANDOM.value), selection.at_random)
  report = {
    "problems": len(problems),
    "candidates": len(candidates),
    "dropped": dropped | selection.dropped,
    **{
      name: describe(found, rates)
      for name, found in (("chosen", selection.chosen), ("random", selection.at_random), ("all", candidates))
    },
  }
  write_json(output.with_name(f"{output.name}.report.json"), report)
  print_report(report, console)
  if len(selection.chosen) < rule.count:
    console.print(f"warning: only {len(selection.chosen):,} of --count={rule.count} problems can be chosen")


def print_report(report: dict[str, Any], console: Console) -> None:
  console.print(f"{report['problems']:,} problems, dropped:")
  for reason, count in report["dropped"].items():
    console.print(f"  {count:>8,}  {reason}")
  sets = ("chosen", "random", "all")
  table = Table("", *sets)
  for column in table.columns[1:]:
    column.justify = "right"
  add = lambda name, cells: table.add_row(name, *cells)
  add("problems", [f"{report[name]['problems']:,}" for name in sets])
  add("mean pass rate", [f"{report[name]['pass_rate']:.3f}" for name in sets])
  add("entropy of sub-domains, nats", [f"{report[name]['entropy']:.3f}" for name in sets])
  for sub_domain in report["all"]["sub_domains"]:
    add(sub_domain, [f"{report[name]['sub_domains'].get(sub_domain, 0):,}" for name in sets])
  console.print(table)


if __name__ == "__main__":
  app.run(main)
