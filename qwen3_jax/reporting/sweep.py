"""The report of a sweep: its work units in one table, means over seeds, and plots. Imports matplotlib."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from qwen3_jax.number_text import duration
from qwen3_jax.reporting.curves import Plot, short
from qwen3_jax.reporting.numbers import MISSING
from qwen3_jax.reporting.page import markdown_table, markdown_text, template
from qwen3_jax.reporting.plots import PALETTE_SIZE, Band, Curve, color, draw, draw_band, smooth
from qwen3_jax.reporting.run_record import RunRecord, StageRecord, read_run, visible
from qwen3_jax.reporting.table import Table
from qwen3_jax.sweeps.study import SEED
from qwen3_jax.sweeps.units import DONE, FAILED, STATUSES, Sweep, WorkUnit, read, short_names, written
from qwen3_jax.workdir import Workdir, WorkdirError, replace_file

_MOST_LABELS = 8  # along the axis of a parameter
_SMOOTHED_FROM = 100  # points of a curve
_CONFIDENCE = 0.95


def write_sweep_report(folder: Path) -> Path:
  """Writes report.html and report.md into a sweep's folder; returns the path of the former.

  Works while the sweep runs, too. Raises SweepError when `folder` holds no sweep.
  """
  found = read(folder)
  results = [_Result(unit, found.metric) for unit in found.units]
  tables = [table for table in (_units(found, results), _over_seeds(found, results)) if table.rows]
  counts = collections.Counter(unit.status for unit in found.units)
  subtitle = " · ".join([found.experiment, *found.overrides, *(f"{n} {status}" for status, n in counts.items())])
  failures = [
    f"{result.unit.name} failed: {_reason(result.unit)}" for result in results if result.unit.status == FAILED
  ]
  page = template().render(
    title=f"Sweep {visible(folder.absolute().name)}",
    subtitle=visible(subtitle),
    notices=[visible(failure) for failure in failures],
    tiles=[],
    tables=tables,
    statuses=set(STATUSES),
    evaluations=[],
    plots=[*_by_parameter(found, results), *_curves(found, results)],
    rollouts=[],
    samples=[],
    config=[],
    environment=[],
  )
  report = folder / "report.html"
  replace_file(report, page)
  blocks = [f"# Sweep {markdown_text(folder.absolute().name)}", markdown_text(subtitle)]
  blocks.append("\n".join(f"- {markdown_text(failure)}" for failure in failures))
  for table in tables:
    blocks += [f"## {table.title}", markdown_table(table), table.note]
  replace_file(report.with_suffix(".md"), "\n\n".join(block for block in blocks if block) + "\n")
  return report


class _Result:
  """A work unit and what its run has written."""

  def __init__(self, unit: WorkUnit, metric: str):
    self.unit = unit
    try:
      self.run: RunRecord | None = read_run(Workdir(unit.folder))
    except WorkdirError:  # it has not begun
      self.run = None
    trained = [stage for stage in self.run.stages if stage.lines] if self.run else []
    self.stage: StageRecord | None = trained[-1] if trained else None
    value = self.stage.last(metric) if self.stage else None
    self.value = value if unit.status == DONE and value is not None else math.nan

  def metrics(self) -> dict[str, float]:
    """Final values of the last stage: its loss and what was validated, over all domains and modes."""
    if self.stage is None:
      return {}
    names = [name for name in self.stage.names if name.count("/") == 1 and name.startswith("validation/")]
    values = {name: self.stage.last(name) for name in ("loss", *names)}
    return {name: value for name, value in values.items() if value is not None}


def _units(sweep: Sweep, results: Sequence[_Result]) -> Table:
  parameters = _parameters(sweep)
  metrics = list(dict.fromkeys([sweep.metric, *(name for result in results for name in result.metrics())]))
  best = _best([result.value for result in results], sweep.maximize)
  rows = []
  for index, result in enumerate(results):
    found, unit = result.metrics(), result.unit
    remark = "best" if index == best else _reason(unit) if unit.status == FAILED else ""
    row = [visible(unit.name), unit.status]
    row += [written(unit.parameters[name]) if name in unit.parameters else MISSING for name in parameters]
    row += [f"{found[name]:.4g}" if name in found else MISSING for name in metrics]
    rows.append((*row, duration(unit.seconds) if unit.seconds else MISSING, remark))
  header = ("Work unit", "Status", *parameters.values(), *metrics)
  header += ("Wall time", "")
  note = (
    "Final values of the last stage that ran. Best: the"
    f" {'highest' if sweep.maximize else 'lowest'} {sweep.metric} among those that are done."
  )
  return Table("Work units", header, rows, frozenset({0, 1, len(header) - 1}), note)


def _over_seeds(sweep: Sweep, results: Sequence[_Result]) -> Table:
  """Means over seeds, where there are several."""
  parameters = {name: shown for name, shown in _parameters(sweep).items() if name != SEED}
  groups: dict[tuple[str, ...], list[float]] = collections.defaultdict(list)
  for result in results:
    if SEED in result.unit.parameters and not math.isnan(result.value):
      groups[tuple(written(result.unit.parameters.get(name, MISSING)) for name in parameters)].append(result.value)
  best = _best([float(np.mean(values)) for values in groups.values()], sweep.maximize)
  rows = []
  for index, (own, values) in enumerate(groups.items()):
    mean, low, high = interval(values)
    shown = f"{low:.4g} to {high:.4g}" if len(values) > 1 else MISSING
    rows.append((*own, str(len(values)), f"{mean:.4g}", shown, "best" if index == best else ""))
  header = (*parameters.values(), "Seeds", sweep.metric, "95% interval", "")
  note = "Means over the seeds that are done, with the interval of Student's t."
  return Table("Over seeds", header, rows, frozenset({*range(len(parameters)), len(header) - 1}), note)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
  """Mean, and the ends of its 95% interval by Student's t; NaN for those of a single value."""
  mean = float(np.mean(values))
  if len(values) < 2:
    return mean, math.nan, math.nan
  half = float(scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * scipy.stats.sem(values))
  return mean, mean - half, mean + half


def _by_parameter(sweep: Sweep, results: Sequence[_Result]) -> list[Plot]:
  """The metric against each parameter that varies."""
  plots = []
  for number, (name, shown) in enumerate(_parameters(sweep).items()):
    groups: dict[Any, list[float]] = collections.defaultdict(list)
    for result in results:
      if name in result.unit.parameters and not math.isnan(result.value):
        groups[_hashable(result.unit.parameters[name])].append(result.value)
    if name == SEED or len(groups) < 2:
      continue
    values, places, is_log = _places(list(groups))
    y = [groups[value] for value in values]
    mean, low, high = (np.array([of(each) for each in y]) for of in (np.mean, np.min, np.max))
    band = Band(places, mean, low, high)
    labelled = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_LABELS)).round().astype(int))
    labels = [(float(places[index]), visible(written(values[index]))[:24]) for index in labelled]
    axis = f"{shown}, logarithmic" if is_log else shown
    svg = draw_band(f"parameter-{number}", band, labels, x_label=visible(axis), format_y=short, size=(5.2, 2.6))
    about = "mean over the other parameters; shaded from the lowest to the highest"
    title = f"{sweep.metric} against {shown}"
    plots.append({"title": visible(title), "about": about, "wide": False, "legend": [], "svg": svg})
  return plots


def _places(values: list[Any]) -> tuple[list[Any], np.ndarray, bool]:
  """The values in order, where each stands on the axis, and whether that is logarithmic."""
  numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
  if len(numbers) < len(values):
    return values, np.arange(len(values), dtype=float), False
  numbers.sort()
  is_log = numbers[0] > 0 and numbers[-1] / numbers[0] > 7
  places = np.array(numbers, float)
  return numbers, np.log10(places) if is_log else places, is_log


def _curves(sweep: Sweep, results: Sequence[_Result]) -> list[Plot]:
  """The metric and the train loss of all work units' last stages; the best in front where there are many."""
  best = _best([result.value for result in results], sweep.maximize)
  plots: list[Plot] = []
  for metric in dict.fromkeys((sweep.metric, "loss")):
    curves: list[Curve] = []
    legend: list[tuple[str, str, str]] = []
    for index, result in enumerate(results):
      steps, y = result.stage.series(metric) if result.stage else (np.zeros(0), np.zeros(0))
      if result.stage is None or not y.size:
        continue
      x = steps * result.stage.tokens_per_step
      if y.size >= _SMOOTHED_FROM:
        x, y = smooth(x, y)
      if len(results) <= PALETTE_SIZE:
        curves.append(Curve(x, y, index))
        legend.append((visible(result.unit.name), color(index), "line"))
      else:
        curves.append(Curve(x, y, 0 if index == best else PALETTE_SIZE - 1, "line" if index == best else "faint"))
    if not curves:
      continue
    if not legend:
      curves.sort(key=lambda curve: curve.style == "line")
      legend = [("others", color(PALETTE_SIZE - 1), "faint")]
      if best is not None:
        legend.insert(0, (f"{visible(results[best].unit.name)}, the best", color(0), "line"))
    svg = draw(metric, curves, [], size=(10.8, 3.4), format_y=short, x_label="tokens of the last stage")
    plots.append({"title": metric, "about": "", "wide": True, "legend": legend, "svg": svg})
  return plots


def _parameters(sweep: Sweep) -> dict[str, str]:
  """Names of all parameters, and how they are shown."""
  names = list(dict.fromkeys(name for unit in sweep.units for name in unit.parameters))
  shown = short_names(names)
  return {name: shown[name] for name in names}


def _best(values: Sequence[float], maximize: bool) -> int | None:
  """Index of the best value, None where all are NaN."""
  if not np.isfinite(values).any():
    return None
  return int(np.nanargmax(values) if maximize else np.nanargmin(values))


def _reason(unit: WorkUnit) -> str:
  """The last line that a failed work unit printed, or its exit status."""
  try:
    lines = unit.output.read_text(encoding="utf-8", errors="replace").split("\n")
  except OSError:
    lines = []
  last = next((line.strip() for line in reversed(lines) if line.strip()), "")
  return visible(last)[:200] or f"exit status {unit.exit_status}"


def _hashable(value: Any) -> Any:
  return str(value) if isinstance(value, list) else value
