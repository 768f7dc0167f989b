"""Writes report.html and report.md of a run: tables, curves, samples, configuration.

  python -m qwen3_jax.report --workdir=DIR

Works at any time, while the run trains too. The page is one file that needs no network.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from absl import app, flags, logging

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.progress import compact, duration
from qwen3_jax.reporting.evaluations import EvaluationRecord, read_evaluations
from qwen3_jax.reporting.run_record import RunRecord, flatten, read_run, visible
from qwen3_jax.reporting.table import Table
from qwen3_jax.workdir import Workdir, WorkdirError, replace_file

_MAX_SAMPLES = 12  # prompts shown of a stage
_MAX_CHARACTERS = 1500  # shown of one text
_MISSING = "–"


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  try:
    print(write_report(Workdir(flags.FLAGS.workdir)))
  except (WorkdirError, OSError) as error:
    sys.exit(f"error: {error}")


def write_report(workdir: Workdir) -> Path:
  """Writes report.html, and report.md beside it; returns the path of the former.

  What is missing or damaged is left out and named in the report. Raises WorkdirError when `workdir` holds no run.
  """
  run = read_run(workdir)
  evaluations = read_evaluations(workdir.path / "evaluations", run.notices)
  tables = [table for table in (_summary(run), _validation(run)) if table.rows]
  page = _template().render(
    title=visible(run.name),
    subtitle=_subtitle(run),
    notices=[visible(notice) for notice in run.notices],
    tiles=_tiles(run),
    tables=tables,
    statuses={"done", "unfinished", "not started"},
    evaluations=[
      (visible(record.name), record.tables(), _budget_plots(record, f"evaluation-{number}"))
      for number, record in enumerate(evaluations)
    ],
    plots=_plots(run),
    rollouts=_rollout_plots(run),
    samples=_samples(run),
    config=_config_sections(run),
    environment=[(visible(key), shorten(value)) for key, value in flatten(run.environment)] if run.environment else [],
  )
  replace_file(workdir.report, page)
  replace_file(workdir.report.with_suffix(".md"), _markdown(run, tables, evaluations))
  return workdir.report


def _summary(run: RunRecord) -> Table:
  header = (
    "Stage",
    "Status",
    "Steps",
    "Tokens",
    "Sequence length",
    "RoPE base",
    "Train loss",
    "Validation loss",
    "Perplexity",
    "Tokens/s",
    "MFU",
    "In steps",
    "Wall time",
  )
  rows = []
  for stage in run.stages:
    planned = stage.planned_steps
    loss = stage.last("validation/loss")
    row = (
      visible(stage.name),
      stage.status,
      f"{stage.steps:,}" if planned in (None, stage.steps) else f"{stage.steps:,} of {planned:,}",
      compact(stage.tokens) if stage.steps else _MISSING,
      _number(stage.settings.get("sequence_length"), lambda value: f"{value:,}"),
      _number(stage.settings.get("rope_theta"), lambda value: f"{value:,.0f}"),
      _number(stage.last("loss"), _loss),
      _number(loss, _loss),
      _number(loss, _perplexity),
      _number(stage.median("tokens_per_second"), compact),
      _number(stage.median("mfu"), lambda value: f"{value:.1%}"),
      _number(stage.step_seconds, duration),
      _number(stage.wall_seconds, duration),
    )
    rows.append(row)
  note = (
    "Losses in nats per token, the last ones logged; validation loss is the mean over domains. Tokens/s and MFU are"
    " medians over logged steps. Wall time runs from the first line of metrics to the last."
  )
  return Table("Stages", header, rows, frozenset({0, 1}), note)


def _validation(run: RunRecord) -> Table:
  rows = []
  for stage in run.stages:
    for domain in stage.domains:
      loss, entropy = stage.last(f"validation/{domain}/loss"), stage.last(f"unigram_entropy/{domain}")
      if loss is None:
        continue  # not evaluated yet
      below = entropy - loss if entropy is not None else None
      rows.append(
        (
          visible(stage.name),
          visible(domain),
          _number(loss, _loss),
          _number(entropy, _loss),
          _number(below, _loss),
          _number(loss, _perplexity),
          _number(stage.last(f"validation/{domain}/accuracy"), lambda value: f"{value:.1%}"),
        )
      )
  note = "Unigram entropy, in nats per token: the loss of the best model that ignores context on the same text."
  header = ("Stage", "Domain", "Validation loss", "Unigram entropy", "Below it by", "Perplexity", "Accuracy")
  return Table("Validation by domain", header, rows, frozenset({0, 1}), note)


def _number(value: Any, show: Callable[[Any], str]) -> str:
  is_number = isinstance(value, int | float) and math.isfinite(value)
  return show(value).replace("-", "−") if is_number else _MISSING


def _loss(value: float) -> str:
  return f"{value:.3f}"


def _perplexity(loss: float) -> str:
  return f"{math.exp(loss):,.1f}" if loss < 11 else f"{math.exp(min(loss, 700)):.1e}"


def _subtitle(run: RunRecord) -> str:
  formats: dict[str, Callable[[str], str]] = {
    "started": lambda value: value[:16].replace("T", " ") + " UTC" * value.endswith("+00:00"),
    "devices": str,
    "jax": "JAX {}".format,
    "commit": lambda value: f"commit {value[:12]}",
  }
  facts = [(show, run.environment.get(key)) for key, show in formats.items()]
  return visible(" · ".join(show(value) for show, value in facts if isinstance(value, str)))


def _tiles(run: RunRecord) -> list[tuple[str, str]]:
  trained = [stage for stage in run.stages if stage.lines]
  if not trained:
    return []
  tiles = []
  model = run.config.get("model")
  try:
    config = ModelConfig(**model) if isinstance(model, dict) else None
    if config is not None:
      label = f"parameters, {compact(config.active_parameter_count())} active" if config.is_moe else "parameters"
      tiles.append((compact(config.parameter_count()), label))
  except (TypeError, ValueError, ArithmeticError):
    pass  # a config of another version
  done = sum(stage.done for stage in run.stages)
  tiles.append((f"{done} of {len(run.stages)}", "stages done"))
  tiles.append((compact(sum(stage.tokens for stage in trained)), "tokens trained on"))
  evaluated = [stage for stage in trained if stage.last("validation/loss") is not None]
  if evaluated:
    stage = evaluated[-1]
    tiles.append((_number(stage.last("validation/loss"), _loss), "validation loss, nats per token"))
    entropies = [stage.last(f"unigram_entropy/{domain}") for domain in stage.domains]
    known = [entropy for entropy in entropies if entropy is not None]
    if known:
      tiles.append((_loss(float(np.mean(known))), "unigram entropy of that text"))
  seconds = sum(stage.wall_seconds or 0.0 for stage in trained)
  tiles.append((duration(seconds), "wall time"))
  return tiles


def _plots(run: RunRecord) -> list[dict[str, Any]]:
  if not any(stage.lines for stage in run.stages):
    return []
  from qwen3_jax.reporting.curves import plots  # matplotlib is slow to import

  return plots(run)


def _rollout_plots(run: RunRecord) -> list[tuple[str, list[dict[str, Any]]]]:
  """(stage, plots)"""
  stages = [stage for stage in run.stages if stage.has_rollouts]
  if not stages:
    return []
  from qwen3_jax.reporting.rollout_curves import rollout_plots  # likewise

  return [(visible(stage.name), rollout_plots(stage, f"rollouts-{i}")) for i, stage in enumerate(stages)]


def _budget_plots(record: EvaluationRecord, prefix: str) -> list[dict[str, Any]]:
  if not any(result.budgets for result in record.tasks):
    return []
  from qwen3_jax.reporting.budget_plots import budget_plots  # likewise

  return budget_plots(record, prefix)


def _samples(run: RunRecord) -> list[tuple[str, list[dict[str, Any]]]]:
  stages = []
  for stage in run.stages:
    pairs = [
      {
        "prompt": shorten(prompt),
        "samples": [
          {"step": sample["step"], "text": shorten(sample["text"])}
          for sample in ([first] if first is last else [first, last])
        ],
      }
      for prompt, first, last in stage.sample_pairs()[:_MAX_SAMPLES]
    ]
    if pairs:
      stages.append((visible(stage.name), pairs))
  return stages


def _config_sections(run: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
  """The config by its first-level sections, keys as `--config.KEY=VALUE` takes them; first what is in no section."""
  sections: dict[str, list[tuple[str, str]]] = {"general": []}
  for key, value in run.config.items():
    if isinstance(value, dict) and value:
      parts = {f"{key}.{name}": item for name, item in value.items()} if key == "stages" else {key: value}
      for title, part in parts.items():
        sections[visible(title)] = [(visible(name), shorten(item)) for name, item in flatten(part, title)]
    else:
      sections["general"] += [(visible(name), shorten(item)) for name, item in flatten(value, key)]
  return [(title, keys) for title, keys in sections.items() if keys]


def shorten(text: str) -> str:
  """Visible text of at most _MAX_CHARACTERS."""
  return visible(text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " …")


def _template() -> jinja2.Template:
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  return environment.from_string((Path(__file__).parent / "reporting" / "template.html").read_text(encoding="utf-8"))


def _markdown(run: RunRecord, tables: list[Table], evaluations: list[EvaluationRecord]) -> str:
  blocks = [f"# {_markdown_text(run.name)}", _markdown_text(_subtitle(run))]
  blocks += ["\n".join(f"- {_markdown_text(notice)}" for notice in run.notices)]
  for table in tables:
    blocks += [f"## {table.title}", _markdown_table(table), table.note]
  for record in evaluations:
    blocks.append(f"## Evaluation {_markdown_text(record.name)}")
    for table in record.tables():
      title = f"### {_markdown_text(table.title)}" if table.title else ""
      blocks += [title, _markdown_table(table), table.note]
  samples = _samples(run)
  if samples:
    blocks.append("## Samples")
  for stage, pairs in samples:
    for pair in pairs:
      for sample in pair["samples"]:
        blocks += [f"{_markdown_text(stage)}, step {sample['step']}:", _fenced(pair["prompt"] + sample["text"])]
  if run.environment:
    blocks += [
      "## Environment",
      _fenced("\n".join(f"{key}: {shorten(value)}" for key, value in flatten(run.environment))),
    ]
  return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_table(table: Table) -> str:
  rule = ["---" if column in table.text_columns else "---:" for column in range(len(table.header))]
  rows = [[_markdown_text(cell) for cell in row] for row in (table.header, *table.rows)]
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def _markdown_text(text: str) -> str:
  return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", visible(text)).replace("\n", " ")


def _fenced(text: str) -> str:
  longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}text\n{visible(text)}\n{fence}"


if __name__ == "__main__":  # defined only here: qwen3_jax.main imports this module and has a --workdir of its own
  flags.DEFINE_string("workdir", None, "The run to report on: the --workdir of qwen3_jax.main.", required=True)
  app.run(main)
