"""Thinking and answering at once, side by side over the stages of a run (Qwen3 report, section 4.3 and Table 22)."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_jax.reporting.evaluations import EvaluationRecord, TaskResult
from qwen3_jax.reporting.numbers import MISSING, percent
from qwen3_jax.reporting.run_record import RunRecord, visible
from qwen3_jax.reporting.table import Table

_COLUMNS = {
  "Thinking": "think/pass@1",
  "No thinking, /no_think": "no_think/pass@1",
  "No thinking, empty block": "thinking off/pass@1",
  "Right form, thinking": "think/well_formed",
  "Right form, /no_think": "no_think/well_formed",
}


def modes_table(run: RunRecord, evaluations: Sequence[EvaluationRecord]) -> Table:
  """A row for each evaluation with a `modes` task, in the order of the stages that they measure."""
  order = [stage.name for stage in run.stages]
  found = []
  for record in evaluations:
    stage = _stage(run, record.name)
    follow = _task(record, "think_follow")
    for result in record.tasks:
      if result.kind != "modes":
        continue
      cells = [_share(result, metric) for metric in _COLUMNS.values()]
      problems = result.metrics.get("problems")
      row = (
        visible(stage or record.name),
        f"{problems:,.0f}" if problems is not None else MISSING,
        *cells[:3],
        MISSING if follow is None else _share(follow, "all turns/obeys"),
        *cells[3:],
      )
      found.append((order.index(stage) if stage in order else len(order), row))
  titles = list(_COLUMNS)
  header = ("After stage", "Problems", *titles[:3], "ThinkFollow", *titles[3:])
  note = (
    "Shares of right answers (pass@1) and of answers of the right form; ThinkFollow: of turns that think, or do not, as"
    " the last flag says. In brackets 95% intervals, over problems or dialogs."
  )
  rows = [row for _, row in sorted(found, key=lambda pair: pair[0])]
  return Table("Thinking modes", header, rows, frozenset({0}), note)


def _stage(run: RunRecord, evaluation: str) -> str:
  settings = run.config.get("evaluations")
  own = settings.get(evaluation) if isinstance(settings, dict) else None
  stage = own.get("stage") if isinstance(own, dict) else None
  return stage if isinstance(stage, str) else ""


def _task(record: EvaluationRecord, kind: str) -> TaskResult | None:
  return next((result for result in record.tasks if result.kind == kind), None)


def _share(result: TaskResult, metric: str) -> str:
  value = result.metrics.get(metric)
  return MISSING if value is None else percent(value, result.intervals.get(metric))
