"""Accuracy against thinking budgets as a plot. Imports matplotlib: import it only where a report is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen3_jax.evaluation.confidence import Interval
from qwen3_jax.number_text import compact
from qwen3_jax.reporting.evaluations import EvaluationRecord
from qwen3_jax.reporting.plots import Band, color, draw_band
from qwen3_jax.reporting.run_record import visible

_SIZE = (10.8, 3.4)
_LABEL_GAP = 0.045  # of the axis, at least between two labels


def budget_plots(record: EvaluationRecord, prefix: str) -> list[dict[str, Any]]:
  """A plot of each task that has accuracies by budget; `prefix` tells the ids inside from those of other plots."""
  plots = []
  for number, result in enumerate(record.tasks):
    points = result.budgets
    if len(points) < 2:
      continue
    x = places([budget for budget, _, _ in points])
    svg = draw_band(
      f"{prefix}-{number}",
      Band(x, np.array([value for _, value, _ in points]), *_bounds([interval for _, _, interval in points])),
      _labels(x, [budget for budget, _, _ in points]),
      x_label="thinking budget, tokens",
      format_y=lambda value: f"{100 * value:g}%",
      size=_SIZE,
    )
    legend = [("accuracy", color(0), "line"), ("95% interval", color(0), "faint")]
    title = f"Accuracy by thinking budget: {visible(result.task)}"
    plots.append({"title": title, "about": "", "wide": True, "legend": legend, "svg": svg})
  return plots


def places(budgets: Sequence[float]) -> np.ndarray:
  """Where budgets stand, from the least on: on a logarithmic axis with 0 one octave before it, no limit one after."""
  finite = [math.log2(budget) for budget in budgets if 0 < budget < math.inf]
  first, last = (min(finite), max(finite)) if finite else (0.0, -1.0)
  return np.array([first - 1 if not b else last + 1 if b == math.inf else math.log2(b) for b in budgets])


def _labels(x: np.ndarray, budgets: Sequence[float]) -> list[tuple[float, str]]:
  """(place, text) of those that do not run into each other; the last, then the first go before the others."""
  width = float(x[-1] - x[0])
  chosen: list[int] = []
  for i in (len(x) - 1, *range(len(x) - 1)):
    if all(abs(x[i] - x[j]) >= _LABEL_GAP * width for j in chosen):
      chosen.append(i)
  return [(float(x[i]), "no limit" if budgets[i] == math.inf else compact(budgets[i])) for i in sorted(chosen)]


def _bounds(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
  return np.array([interval.low for interval in intervals]), np.array([interval.high for interval in intervals])
