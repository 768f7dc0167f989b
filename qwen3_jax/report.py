"""Writes report.html and report.md of a run: tables, curves, samples, configuration.

  python -m qwen3_jax.report --workdir=DIR

or, with --sweep=DIR, of a sweep: one table and the curves of all its work units (reporting/sweep.py).
Works at any time, while the run trains too. The page is one file that needs no network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from qwen3_jax.reporting.compile_table import compile_table
from qwen3_jax.reporting.evaluations import EvaluationRecord, read_evaluations
from qwen3_jax.reporting.expert_maps import expert_maps
from qwen3_jax.reporting.modes_table import modes_table
from qwen3_jax.reporting.page import fenced, markdown_table, markdown_text, template
from qwen3_jax.reporting.pipeline import diagram
from qwen3_jax.reporting.run_record import RunRecord, flatten, read_run, visible
from qwen3_jax.reporting.start_comparison import comparison_plot, start_comparisons
from qwen3_jax.reporting.summary import read_goodput, stage_table, subtitle, tiles, validation_table, whole_run
from qwen3_jax.reporting.table import Table
from qwen3_jax.reporting.written_samples import WrittenSamples, shorten, written_samples
from qwen3_jax.workdir import Workdir, WorkdirError, replace_file


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  try:
    if flags.FLAGS.sweep:
      from qwen3_jax.reporting.sweep import write_sweep_report

      print(write_sweep_report(Path(flags.FLAGS.sweep)))
    else:
      print(write_report(Workdir(flags.FLAGS.workdir)))
  except (WorkdirError, OSError) as error:
    sys.exit(f"error: {error}")


def write_report(workdir: Workdir) -> Path:
  """Writes report.html, and report.md beside it; returns the path of the former.

  What is missing or damaged is left out and named in the report. Raises WorkdirError when `workdir` holds no run.
  """
  run = read_run(workdir)
  evaluations = read_evaluations(workdir.path / "evaluations", run.notices)
  compiled = compile_table(workdir.path / "compile", run.notices)
  experts = expert_maps(run, workdir)
  spent = read_goodput(workdir, run.notices)
  tables = [stage_table(run), validation_table(run), modes_table(run, evaluations)]
  tables = [table for table in tables if table.rows]
  comparisons = start_comparisons(run, workdir)
  samples = written_samples(run)
  page = template().render(
    title=visible(run.name),
    subtitle=subtitle(run),
    notices=[visible(notice) for notice in run.notices],
    tiles=tiles(run, spent),
    pipeline=diagram(run),
    whole_run=whole_run(run, spent),
    tables=tables,
    comparisons=[(found.table, comparison_plot(found, f"start-{i}")) for i, found in enumerate(comparisons)],
    statuses={"done", "unfinished", "not started"},
    evaluations=[
      (visible(record.name), record.tables(), _budget_plots(record, f"evaluation-{number}"))
      for number, record in enumerate(evaluations)
    ],
    plots=_plots(run),
    experts=experts,
    rollouts=_rollout_plots(run),
    samples=samples,
    compiled=compiled,
    config=_config_sections(run),
    environment=[(visible(key), shorten(value)) for key, value in flatten(run.environment)] if run.environment else [],
  )
  replace_file(workdir.report, page)
  tables += [found.table for found in comparisons]
  tables += [experts.table] if experts is not None and experts.table.rows else []
  tables += [compiled] if compiled.rows else []
  replace_file(workdir.report.with_suffix(".md"), _markdown(run, tables, evaluations, samples))
  return workdir.report


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


def _markdown(
  run: RunRecord, tables: list[Table], evaluations: list[EvaluationRecord], samples: list[WrittenSamples]
) -> str:
  blocks = [f"# {markdown_text(run.name)}", markdown_text(subtitle(run))]
  blocks += ["\n".join(f"- {markdown_text(notice)}" for notice in run.notices)]
  for table in tables:
    blocks += [f"## {table.title}", markdown_table(table), table.note]
  for record in evaluations:
    blocks.append(f"## Evaluation {markdown_text(record.name)}")
    for table in record.tables():
      title = f"### {markdown_text(table.title)}" if table.title else ""
      blocks += [title, markdown_table(table), table.note]
  if samples:
    blocks.append("## What it writes")
  for group in samples:
    for prompt, texts in group.rows:
      for column, text in zip(group.columns, texts):
        blocks += [f"{markdown_text(column.stage)}, step {column.step}:", fenced(prompt + text)]
  if run.environment:
    blocks += [
      "## Environment",
      fenced("\n".join(f"{key}: {shorten(value)}" for key, value in flatten(run.environment))),
    ]
  return "\n\n".join(block for block in blocks if block) + "\n"


if __name__ == "__main__":  # defined only here: qwen3_jax.main imports this module and has a --workdir of its own
  flags.DEFINE_string("workdir", None, "The run to report on: the --workdir of qwen3_jax.main.")
  flags.DEFINE_string("sweep", None, "In its place, the sweep to report on: the --workdir of launch.local_sweep.")
  flags.mark_flags_as_mutual_exclusive(["workdir", "sweep"], required=True)
  app.run(main)
