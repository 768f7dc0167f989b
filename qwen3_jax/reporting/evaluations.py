"""Results of `python -m qwen3_jax.evaluate --json=WORKDIR/evaluations/NAME.json` in the report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from qwen3_jax.evaluation.confidence import Interval
from qwen3_jax.evaluation.result_tables import budget_of, group_tables, shown, single_metrics
from qwen3_jax.reporting.run_record import visible
from qwen3_jax.reporting.table import Table
from qwen3_jax.workdir import read_json

_NOTE = "In brackets 95% intervals."


@dataclasses.dataclass(frozen=True)
class TaskResult:
  task: str
  metrics: dict[str, float]
  intervals: dict[str, Interval]

  @property
  def kind(self) -> str:
    """Of the task: what `evaluate --tasks` has before the colon."""
    return self.task.partition(":")[0]

  @property
  def budgets(self) -> list[tuple[float, float, Interval]]:
    """Budget, infinity for none; accuracy; its interval."""
    found = []
    for metric, value in self.metrics.items():
      group, _, name = metric.rpartition("/")
      budget = budget_of(group)
      if name == "accuracy" and budget is not None and metric in self.intervals:
        found.append((budget, value, self.intervals[metric]))
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
  """One file."""

  name: str
  tasks: list[TaskResult]

  def tables(self) -> list[Table]:
    """Of each task its single metrics and its groups; the first has the task as its title."""
    tables = []
    for result in self.tasks:
      single = [
        (visible(name), shown(result.metrics[name], result.intervals.get(name)))
        for name in single_metrics(result.metrics)
      ]
      own = [Table("", ("Metric", "Value"), single, frozenset({0}))] if single else []
      for header, rows in group_tables(result.metrics, result.intervals):
        cells = [tuple(map(visible, row)) for row in rows]
        own.append(Table("", tuple(visible(_title(name)) for name in header), cells, frozenset({0})))
      if own:
        own[0] = dataclasses.replace(own[0], title=visible(result.task))
        own[-1] = dataclasses.replace(own[-1], note=_NOTE if result.intervals else "")
      tables += own
    return tables


def read_evaluations(folder: Path, notices: list[str]) -> list[EvaluationRecord]:
  """The .json files of a folder, by name; what is damaged is left out, and named in a notice."""
  records = []
  for path in sorted(folder.glob("*.json")):
    try:
      content = read_json(path)
    except (OSError, ValueError, RecursionError):
      content = None
    tasks = [_task(str(name), value) for name, value in content.items()] if isinstance(content, dict) else [None]
    if None in tasks:
      notices.append(f"{folder.name}/{path.name} is damaged")
    readable = [task for task in tasks if task is not None]
    if readable:
      records.append(EvaluationRecord(path.stem, readable))
  return records


def _task(name: str, value: Any) -> TaskResult | None:
  """None for what `evaluate` did not write. Metrics that are not finite are left out."""
  metrics = value.get("metrics") if isinstance(value, dict) else None
  intervals = value.get("intervals", {}) if isinstance(value, dict) else None
  if not isinstance(metrics, dict) or not isinstance(intervals, dict):
    return None
  found = {}
  for metric, bounds in intervals.items():
    if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds))):
      return None
    found[metric] = Interval(*map(float, bounds))
  if not all(_is_number(number) or number in ("NaN", "Infinity", "-Infinity") for number in metrics.values()):
    return None
  return TaskResult(name, {key: float(number) for key, number in metrics.items() if _is_number(number)}, found)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300 and math.isfinite(value)


def _title(name: str) -> str:
  """A metric's name as a column's."""
  words = name.replace("_", " ")
  return words[:1].upper() + words[1:]
