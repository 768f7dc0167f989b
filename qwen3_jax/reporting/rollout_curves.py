"""Curves of a stage that learns from what it writes. Imports matplotlib: import it only where a report is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from qwen3_jax.number_text import compact
from qwen3_jax.reporting.compute import pass_at_more
from qwen3_jax.reporting.curves import percent, short, smoothed
from qwen3_jax.reporting.plots import Band, Curve, color, draw
from qwen3_jax.reporting.run_record import StageRecord

ENTROPY_BAND = 2.0  # shaded: the target over it, and times it


class _Spec(NamedTuple):
  """A plot of metrics, each a curve in a colour of its own."""

  id: str
  title: str
  about: str
  labels: dict[str, str]  # metric -> what the legend says
  format_y: Callable[[float], str]


_ENTROPY = _Spec("entropy", "Entropy", "nats a token", {"rollout/rollout_entropy": "of the rollouts"}, short)
_LENGTH = _Spec(
  "length",
  "Length",
  "tokens",
  {"rollout/response_tokens": "answers", "rollout/thinking_tokens": "thinking"},
  compact,
)
_GROUPS = _Spec(
  "groups",
  "Rollouts to learn little from",
  "share",
  {"rollout/zero_variance": "all answers of a group alike", "rollout/truncated": "cut off", "rollout/broken": "broken"},
  percent,
)
_CLIPPED = _Spec(
  "clip",
  "Clipped",
  "share of tokens",
  {"clipped_high": "above", "clipped_low": "below", "importance_capped": "importance capped"},
  percent,
)
_GAP = _Spec(
  "gap",
  "Learner and sampler apart",
  "nats a token",
  {"log_probability_gap": "log-probability", "kl": "from the reference (KL)"},
  short,
)


def rollout_plots(stage: StageRecord, prefix: str) -> list[dict[str, Any]]:
  """Plots over the stage's steps, those that have values other than zeros; `prefix` tells ids from other plots'."""
  specs = (_LENGTH, _GROUPS, _CLIPPED, _GAP)
  plots = [_plot(stage, prefix, _score(stage)), _entropy(stage, prefix), *(_plot(stage, prefix, s) for s in specs)]
  return [plot for plot in plots if plot is not None]


def _score(stage: StageRecord) -> _Spec:
  labels = {"rollout/pass@1": "of the rollouts", "validation/pass@1": "held-out problems"}
  if name := pass_at_more(stage.names):
    labels[name] = f"held-out problems, {name.removeprefix('validation/')}"
  return _Spec("score", "Right answers", "", labels, percent)


def _entropy(stage: StageRecord, prefix: str) -> dict[str, Any] | None:
  """The rollouts' entropy, and what its control aims at."""
  x, target = stage.series("entropy_target")
  x, target = x[target > 0], target[target > 0]
  if x.size < 2:
    return _plot(stage, prefix, _ENTROPY)
  band = Band(x, target, target / ENTROPY_BAND, target * ENTROPY_BAND, 1)
  plot = _plot(stage, prefix, _ENTROPY, [Curve(x, target, 1, "dashed")], band)
  if plot is not None:
    plot["legend"] += [
      ("target", color(1), "dashed"),
      (f"within a factor of {ENTROPY_BAND:g} of it", color(1), "faint"),
    ]
  return plot


def _plot(
  stage: StageRecord, prefix: str, spec: _Spec, behind: Sequence[Curve] = (), band: Band | None = None
) -> dict[str, Any] | None:
  curves = list(behind)
  legend = []
  for index, (metric, label) in enumerate(spec.labels.items()):
    x, y = stage.series(metric)
    if not y.size:
      continue
    curves += [Curve(x, y, index, "dots")] if metric.startswith("validation/") else smoothed(x, y, index)
    legend.append((label, color(index), "line"))
  if not legend or not any(curve.y.any() for curve in curves):
    return None
  svg = draw(f"{prefix}-{spec.id}", curves, [], format_y=spec.format_y, x_label="steps", band=band)
  return {"title": spec.title, "about": spec.about, "wide": False, "legend": legend, "svg": svg}
