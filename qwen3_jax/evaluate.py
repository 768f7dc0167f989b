"""Evaluates a checkpoint:

  python -m qwen3_jax.evaluate --checkpoint=DIR --tasks=perplexity:texts.jsonl,exact_match:problems.jsonl [--json=FILE]

Tasks, separated by commas:

  perplexity:FILE    .jsonl with a field `text`, or a text file
  exact_match:FILE   .jsonl of {"prompt" or "messages", "answer"}: share of right answers, and pass@k with --samples
  lm_eval:TASK       a task of lm-evaluation-harness (pip install 'qwen3_jax[eval]'); --include_path for your own

The checkpoint is a Hugging Face folder, one of ours, or a stage of a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3_jax.chat import load
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.evaluation import Evaluation
from qwen3_jax.evaluation.exact_match import ExactMatch
from qwen3_jax.evaluation.perplexity import Perplexity
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.safetensors_io import WeightsError

Task = Callable[[Transformer, Tokenizer], Evaluation]


def _perplexity(location: str, arguments: argparse.Namespace) -> Task:
  return Perplexity(_file(location), limit=arguments.limit).run


def _exact_match(location: str, arguments: argparse.Namespace) -> Task:
  options = {
    "enable_thinking": not arguments.no_thinking,
    "thinking_budget": arguments.thinking_budget,
    "max_new_tokens": arguments.max_new_tokens,
    "temperature": arguments.temperature,
    "top_p": arguments.top_p,
    "top_k": arguments.top_k,
    "seed": arguments.seed,
  }
  SamplingParams(
    temperature=arguments.temperature, top_p=arguments.top_p, top_k=arguments.top_k
  )  # or says what is wrong
  ks = tuple(k for k in arguments.ks if k <= arguments.samples)
  return ExactMatch(_file(location), arguments.samples, ks, arguments.limit, options).run


def _lm_eval(name: str, arguments: argparse.Namespace) -> Task:
  try:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
  except ImportError:
    raise ValueError("lm_eval tasks need lm-evaluation-harness: pip install 'qwen3_jax[eval]'") from None
  from qwen3_jax.evaluation.lm_eval_adapter import Qwen3LM

  manager = TaskManager(include_path=arguments.include_path and str(arguments.include_path))
  if name not in manager.all_tasks:
    raise ValueError(f"lm_eval has no task {name!r}{_nearest(name, manager.all_tasks)}")

  def run(model: Transformer, tokenizer: Tokenizer) -> Evaluation:
    adapter = Qwen3LM(
      model,
      tokenizer,
      enable_thinking=not arguments.no_thinking,
      thinking_budget=arguments.thinking_budget,
      seed=arguments.seed,
    )
    found = simple_evaluate(
      adapter,
      tasks=[name],
      task_manager=manager,
      limit=arguments.limit or None,
      apply_chat_template=arguments.chat_template,
      bootstrap_iters=0,
      log_samples=False,
    )
    assert found is not None
    metrics: dict[str, float] = {}
    for task, values in found["results"].items():
      for key, value in values.items():
        if isinstance(value, int | float) and "stderr" not in key:
          label = key.removesuffix(",none")
          metrics[label if task == name else f"{task} {label}"] = float(value)
    return Evaluation(metrics, [])

  return run


KINDS: dict[str, Callable[[str, argparse.Namespace], Task]] = {
  "perplexity": _perplexity,
  "exact_match": _exact_match,
  "lm_eval": _lm_eval,
}


def make_tasks(names: str, arguments: argparse.Namespace) -> dict[str, Task]:
  """Raises ValueError for what is no task, before a model is loaded."""
  tasks: dict[str, Task] = {}
  for name in names.split(","):
    kind, colon, location = name.strip().partition(":")
    if kind not in KINDS:
      raise ValueError(f"--tasks: {kind!r} is no kind of task{_nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
    if not colon or not location:
      raise ValueError(f"--tasks: {name!r}, expected {kind}:{'TASK' if kind == 'lm_eval' else 'FILE'}")
    tasks[name.strip()] = KINDS[kind](location, arguments)
  return tasks


def _file(location: str) -> Path:
  path = Path(location)
  if not path.is_file():
    raise ValueError(f"{location}: no such file")
  return path


def _nearest(name: str, names: Any) -> str:
  near = difflib.get_close_matches(name, list(names), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""


def print_table(results: dict[str, Evaluation], console: Console) -> None:
  table = Table("task", "metric")
  table.add_column("value", justify="right")
  for name, evaluation in results.items():
    for i, (metric, value) in enumerate(evaluation.metrics.items()):
      whole = value == int(value) and abs(value) >= 1
      table.add_row(name if i == 0 else "", metric, f"{value:,.0f}" if whole else f"{value:.4f}")
  console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    prog="python -m qwen3_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the model")
  parser.add_argument("--tokenizer", type=Path, help="folder or file; the checkpoint's own unless given")
  parser.add_argument("--tasks", required=True, help="what to evaluate, see above")
  parser.add_argument("--json", type=Path, help="where results are also written, with a row for each problem")
  parser.add_argument("--limit", type=int, default=0, help="texts or problems of a task; 0: all")
  parser.add_argument("--samples", type=int, default=1, help="answers to each problem")
  whole_numbers = lambda text: tuple(int(k) for k in text.split(","))
  parser.add_argument("--ks", type=whole_numbers, default=(1, 2, 4, 8, 16, 32, 64), help="of pass@k, up to --samples")
  parser.add_argument("--no_thinking", action="store_true", help="answers without thinking")
  parser.add_argument("--thinking_budget", type=int, metavar="N", help="tokens of thinking before it must answer")
  parser.add_argument("--max_new_tokens", type=int, default=2048, help="of an answer (default %(default)s)")
  parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (default %(default)s)")
  parser.add_argument("--top_p", type=float, default=0.95, help="default %(default)s")
  parser.add_argument("--top_k", type=int, default=20, help="default %(default)s")
  parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
  parser.add_argument("--dtype", default="bfloat16", help="of the computation (default %(default)s)")
  parser.add_argument("--include_path", type=Path, help="folder of lm_eval tasks of your own")
  parser.add_argument("--chat_template", action="store_true", help="lm_eval prompts become user turns")
  arguments = parser.parse_args(argv)
  try:
    tasks = make_tasks(arguments.tasks, arguments)
    model, tokenizer = load(arguments.checkpoint, arguments.tokenizer, arguments.dtype)
    results = {name: task(model, tokenizer) for name, task in tasks.items()}
  except (ValueError, OSError, WeightsError) as error:
    sys.exit(f"error: {error}")
  print_table(results, Console(highlight=False))
  if arguments.json:
    written = {name: dataclasses.asdict(evaluation) for name, evaluation in results.items()}
    arguments.json.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
