"""Evaluates a checkpoint:

  python -m qwen3_jax.evaluate --checkpoint=DIR --tasks=perplexity:texts.jsonl,exact_match:problems.jsonl [--json=FILE]

Tasks, separated by commas:

  perplexity:FILE    .jsonl with a field `text`, or a text file
  exact_match:FILE   .jsonl of {"prompt" or "messages", "answer"}: share of right answers, and pass@k with --samples
  lm_eval:TASK       a task of lm-evaluation-harness (pip install 'qwen3_jax[eval]'); --include_path for your own
  modes:SPEC         accuracy, obedience and form of answers with /think, with /no_think, and with thinking off
  think_follow:SPEC  dialogs with random /think and /no_think: share of turns that obey; --dialogs, --turns
  budget_curve:SPEC  accuracy against thinking budgets; --budgets

SPEC names problems as configs do, e.g. cups:128:3:1-8, jsonl:FILE or reasoning-gym:FAMILIES:COUNT:SEED:CONFIG
(`qwen3_jax.problems.sources`). Commas may stand in it: one ends it only where a kind of task and a colon follow.

With --json=WORKDIR/evaluations/NAME.json the report of that run shows the results.

The checkpoint is a Hugging Face folder, one of ours, or a stage of a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qwen3_jax import nearest
from qwen3_jax.chat import load
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.budget_curve import BudgetCurve
from qwen3_jax.evaluation.confidence import IntervalEvaluation
from qwen3_jax.evaluation.evaluation import Evaluation
from qwen3_jax.evaluation.exact_match import ExactMatch
from qwen3_jax.evaluation.lm_eval_task import LmEval
from qwen3_jax.evaluation.perplexity import Perplexity
from qwen3_jax.evaluation.questions import Asking
from qwen3_jax.evaluation.result_tables import group_tables, shown, single_metrics
from qwen3_jax.evaluation.scoring import BATCH_TOKENS
from qwen3_jax.evaluation.think_follow import ThinkFollow
from qwen3_jax.evaluation.thinking_modes import ThinkingModes
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.rollout.sampling import NOT_THINKING, THINKING
from qwen3_jax.safetensors_io import WeightsError
from qwen3_jax.workdir import write_json

Task = Callable[[Transformer, Tokenizer], Evaluation]

_MAX_NEW_TOKENS = 2048
_KS = (1, 2, 4, 8, 16, 32, 64)
_SAMPLING = ("temperature", "top_p", "top_k", "presence_penalty")


def _perplexity(location: str, arguments: argparse.Namespace) -> Task:
  evaluator = Perplexity(
    _file(location), arguments.limit, arguments.window, arguments.stride, batch_tokens=arguments.batch_tokens
  )
  evaluator.texts()  # or says what is wrong
  return evaluator.run


def _exact_match(location: str, arguments: argparse.Namespace) -> Task:
  given = _given_sampling(arguments)
  sampling = dataclasses.replace(NOT_THINKING if arguments.no_thinking else THINKING, **given)  # or says what is wrong
  options = {
    **{name: getattr(sampling, name) for name in _SAMPLING},
    "thinking_budget": None if arguments.no_thinking else arguments.thinking_budget,
    "max_new_tokens": arguments.max_new_tokens or _MAX_NEW_TOKENS,
    "seed": arguments.seed,
  }
  evaluator = ExactMatch(
    _file(location),
    arguments.samples,
    _ks(arguments),
    arguments.limit,
    not arguments.no_thinking,
    options,
    arguments.slots,
  )
  evaluator.problems()
  return evaluator.run


def _lm_eval(name: str, arguments: argparse.Namespace) -> Task:
  options = {
    "enable_thinking": not arguments.no_thinking,
    "thinking_budget": arguments.thinking_budget,
    "seed": arguments.seed,
    "slots": arguments.slots,
    "batch_tokens": arguments.batch_tokens,
  }
  evaluator = LmEval(
    name, arguments.include_path, arguments.limit, arguments.chat_template, arguments.max_new_tokens, options
  )
  evaluator.manager()
  return evaluator.run


def _modes(spec: str, arguments: argparse.Namespace) -> Task:
  _refuse("modes", arguments, "no_thinking", "it asks in every mode")
  problems, asking = _problems(spec, arguments), _asking(arguments)
  budget = arguments.thinking_budget
  return ThinkingModes(problems, arguments.samples, _ks(arguments), arguments.seed, budget, asking).run


def _think_follow(spec: str, arguments: argparse.Namespace) -> Task:
  _refuse("think_follow", arguments, "no_thinking", "its dialogs say when to think")
  problems, asking = _problems(spec, arguments), _asking(arguments)
  budget = arguments.thinking_budget
  return ThinkFollow(problems, arguments.dialogs, arguments.turns, arguments.seed, budget, asking).run


def _budget_curve(spec: str, arguments: argparse.Namespace) -> Task:
  _refuse("budget_curve", arguments, "no_thinking", "it measures what thinking is worth")
  _refuse("budget_curve", arguments, "thinking_budget", "its budgets are --budgets")
  problems, asking = _problems(spec, arguments), _asking(arguments)
  return BudgetCurve(problems, arguments.samples, arguments.budgets or (), arguments.seed, asking).run


def _problems(spec: str, arguments: argparse.Namespace) -> list[Problem]:
  try:
    problems = open_problems(spec)
  except ImportError as error:
    raise ValueError(str(error)) from None
  return problems[: arguments.limit] if arguments.limit else problems


def _asking(arguments: argparse.Namespace) -> Asking:
  given = _given_sampling(arguments)
  return Asking(
    dataclasses.replace(THINKING, **given),
    dataclasses.replace(NOT_THINKING, **given),
    arguments.max_new_tokens or _MAX_NEW_TOKENS,
    arguments.slots,
  )


def _given_sampling(arguments: argparse.Namespace) -> dict[str, Any]:
  return {name: value for name in _SAMPLING if (value := getattr(arguments, name)) is not None}


def _ks(arguments: argparse.Namespace) -> tuple[int, ...]:
  return arguments.ks or tuple(k for k in _KS if k <= arguments.samples)


def _refuse(kind: str, arguments: argparse.Namespace, option: str, why: str) -> None:
  if getattr(arguments, option) not in (None, False):
    raise ValueError(f"--{option} with {kind}: {why}")


KINDS: dict[str, Callable[[str, argparse.Namespace], Task]] = {
  "perplexity": _perplexity,
  "exact_match": _exact_match,
  "lm_eval": _lm_eval,
  "modes": _modes,
  "think_follow": _think_follow,
  "budget_curve": _budget_curve,
}
_FORMS = {"lm_eval": "TASK", **dict.fromkeys(("modes", "think_follow", "budget_curve"), "SPEC")}  # else FILE


def make_tasks(names: str, arguments: argparse.Namespace) -> dict[str, Task]:
  """Raises ValueError for what is no task, and for bad files and options, before a model is loaded."""
  for name, least in _LEAST.items():
    value = getattr(arguments, name)
    if value is not None and value < least:
      raise ValueError(f"--{name}={value}, expected at least {least}")
  tasks: dict[str, Task] = {}
  for name in task_names(names):
    kind, colon, location = name.partition(":")
    if kind not in KINDS:
      raise ValueError(f"--tasks: {kind!r} is no kind of task{nearest.clause(kind, KINDS)}; known: {', '.join(KINDS)}")
    if not colon or not location:
      raise ValueError(f"--tasks: {name!r}, expected {kind}:{_FORMS.get(kind, 'FILE')}")
    tasks[name] = KINDS[kind](location, arguments)
  return tasks


def task_names(text: str) -> list[str]:
  """The tasks of `--tasks`: what commas separate, but for those within a SPEC."""
  names: list[str] = []
  for piece in text.split(","):
    kind, colon, _ = piece.strip().partition(":")
    within = bool(names) and _FORMS.get(names[-1].strip().partition(":")[0]) == "SPEC"
    if within and not (colon and kind in KINDS):
      names[-1] += "," + piece
    else:
      names.append(piece)
  return [name.strip() for name in names]


def _file(location: str) -> Path:
  path = Path(location)
  if not path.is_file():
    raise ValueError(f"{location}: no such file")
  return path


def print_tables(results: dict[str, Evaluation], console: Console) -> None:
  """One of single metrics, then those of groups of metrics; with intervals where there are any."""
  table = Table("task", "metric")
  table.add_column("value", justify="right")
  groups = []
  for name, evaluation in results.items():
    intervals = evaluation.intervals if isinstance(evaluation, IntervalEvaluation) else {}
    for i, metric in enumerate(single_metrics(evaluation.metrics)):
      table.add_row(escape(name) if i == 0 else "", metric, shown(evaluation.metrics[metric], intervals.get(metric)))
    for found in group_tables(evaluation.metrics, intervals):
      groups.append(Table(escape(name)))
      for column in found.header[1:]:
        groups[-1].add_column(column, justify="right")
      for row in found.rows:
        groups[-1].add_row(*row)
  for one in (table, *groups):
    console.print(one)


def evaluate(arguments: argparse.Namespace) -> dict[str, Evaluation]:
  """Runs the tasks; `--json` is written after each, so that what is done is kept."""
  tasks = make_tasks(arguments.tasks, arguments)
  if arguments.json is not None:
    if arguments.json.is_dir():
      raise ValueError(f"--json={arguments.json} is a folder")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
  model, tokenizer = load(arguments.checkpoint, arguments.tokenizer, arguments.dtype)
  results: dict[str, Evaluation] = {}
  for name, task in tasks.items():
    results[name] = task(model, tokenizer)
    if arguments.json is not None:
      write_json(arguments.json, {name: dataclasses.asdict(evaluation) for name, evaluation in results.items()})
  return results


# Numbers of the command line, and their least values.
_LEAST = {
  "limit": 0, "samples": 1, "max_new_tokens": 1, "thinking_budget": 0, "slots": 0, "batch_tokens": 1, "window": 0,
  "stride": 0, "dialogs": 1, "turns": 2,
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
  made = argparse.ArgumentParser(
    prog="python -m qwen3_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )

  def add(name: str, type: Callable[[str], Any], help: str, default: Any = None, **rest: Any) -> None:
    shown = " (default %(default)s)" if default else ""
    made.add_argument(f"--{name}", type=type, default=default, help=help + shown, **rest)

  add("checkpoint", Path, "folder of the model", required=True)
  add("tokenizer", Path, "folder or file; the checkpoint's own unless given")
  add("tasks", str, "what to evaluate, see above", required=True)
  add("json", Path, "where results are also written, with a row for each text and problem")
  add("dtype", str, "of the computation", "bfloat16")
  add("limit", int, "texts or problems of a task; 0: all", 0)
  add("seed", int, "of sampling", 0)
  add("batch_tokens", int, "tokens that are scored at a time", BATCH_TOKENS)
  add("slots", int, "sequences that are generated at a time; 0: as many as needed, up to 64", 0)
  add("window", int, "perplexity: tokens that are read at a time; 0: the model's context", 0)
  add("stride", int, "perplexity: tokens from one window to the next; 0: the window", 0)
  add("samples", int, "exact_match, modes, budget_curve: answers to each problem", 1)
  add("ks", whole_numbers, "of pass@k, separated by commas; 1, 2, 4, ... up to --samples unless given")
  add("max_new_tokens", int, "of an answer; 2048, or what the lm_eval task says, unless given")
  add("dialogs", int, "think_follow: how many", ThinkFollow.dialogs)
  add("turns", int, "think_follow: of the user in a dialog, at most", ThinkFollow.turns)
  budgets = "0 and powers of two up to the longest thinking unless given"
  add("budgets", whole_numbers, f"budget_curve: tokens of thinking, separated by commas; {budgets}")
  add("thinking_budget", int, "tokens of thinking before the model must answer")
  made.add_argument("--no_thinking", action="store_true", help="answers without thinking")
  add("temperature", float, "0 is greedy; 0.6 unless given, 0.7 without thinking")
  add("top_p", float, "0.95 unless given, 0.8 without thinking")
  add("top_k", int, "20 unless given")
  add("presence_penalty", float, "0 unless given, 1.5 without thinking")
  add("include_path", Path, "folder of lm_eval tasks of your own")
  made.add_argument("--chat_template", action="store_true", help="lm_eval prompts become user turns")
  return made


def whole_numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(","))


def main(argv: Sequence[str] | None = None) -> None:
  arguments = parser().parse_args(argv)
  try:
    results = evaluate(arguments)
  except (ValueError, OSError, WeightsError) as error:
    sys.exit("error: " + " ".join(str(error).split()))
  print_tables(results, Console(highlight=False))


if __name__ == "__main__":
  main()
