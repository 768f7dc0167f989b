"""Curves of a stage that learns from what it writes. Imports matplotlib: import it only where a report is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qwen3_jax.progress import compact
from qwen3_jax.reporting.curves import percent, short, smoothed
from qwen3_jax.reporting.plots import Band, Curve, color, draw
from qwen3_jax.reporting.run_record import StageRecord

ENTROPY_BAND = 2.0  # shaded: the target over it, and times it


def rollout_plots(stage: StageRecord, prefix: str) -> list[dict[str, Any]]:
  """Plots over the stage's steps, those that have values other than zeros; `prefix` tells ids from other plots'."""
  best = next((name for name in sorted(stage.names) if _is_pass_at_more(name)), "")
  plots = [
    _plot(
      stage,
      f"{prefix}-score",
      "Right answers",
      {
        "rollout/pass@1": "of the rollouts",
        "validation/pass@1": "held-out problems",
        best: f"held-out problems, {best.removeprefix('validation/')}",
      },
      format_y=percent,
    ),
    _entropy(stage, f"{prefix}-entropy"),
    _plot(
      stage,
      f"{prefix}-length",
      "Length",
      {"rollout/response_tokens": "answers", "rollout/thinking_tokens": "thinking"},
      about="tokens",
      format_y=compact,
    ),
    _plot(
      stage,
      f"{prefix}-groups",
      "Rollouts to learn little from",
      {
        "rollout/zero_variance": "all answers of a group alike",
        "rollout/truncated": "cut off",
        "rollout/broken": "broken",
      },
      about="share",
      format_y=percent,
    ),
    _plot(
      stage,
      f"{prefix}-clip",
      "Clipped",
      {"clipped_high": "above", "clipped_low": "below", "importance_capped": "importance capped"},
      about="share of tokens",
      format_y=percent,
    ),
    _plot(
      stage,
      f"{prefix}-gap",
      "Learner and sampler apart",
      {"log_probability_gap": "log-probability", "kl": "from the reference (KL)"},
      about="nats a token",
      format_y=short,
    ),
  ]
  return [plot for plot in plots if plot is not None]


def _is_pass_at_more(name: str) -> bool:
  return name.startswith("validation/pass@") and name.count("/") == 1 and name != "validation/pass@1"


def _entropy(stage: StageRecord, id: str) -> dict[str, Any] | None:
  """The rollouts' entropy, and what its control aims at."""
  x, target = stage.series("entropy_target")
  held = x[target > 0], target[target > 0]
  band = Band(*held, held[1] / ENTROPY_BAND, held[1] * ENTROPY_BAND, 1) if held[0].size > 1 else None
  plot = _plot(
    stage,
    id,
    "Entropy",
    {"rollout/rollout_entropy": "of the rollouts"},
    about="nats a token",
    format_y=short,
    more=[Curve(*held, 1, "dashed")],
    band=band,
  )
  if plot is not None and band is not None:
    plot["legend"] += [
      ("target", color(1), "dashed"),
      (f"within a factor of {ENTROPY_BAND:g} of it", color(1), "faint"),
    ]
  return plot


def _plot(
  stage: StageRecord,
  id: str,
  title: str,
  labels: dict[str, str],
  *,
  format_y: Callable[[float], str],
  about: str = "",
  more: Sequence[Curve] = (),
  band: Band | None = None,
) -> dict[str, Any] | None:
  """Metrics, each a curve in a colour of its own."""
  curves: list[Curve] = list(more)
  legend = []
  for number, (metric, label) in enumerate(labels.items()):
    index = number + (number > 0 and bool(more))
    x, y = stage.series(metric)
    if not y.size:
      continue
    curves += [Curve(x, y, index, "dots")] if metric.startswith("validation/") else smoothed(x, y, index)
    legend.append((label, color(index), "line"))
  if not any(curve.y.any() for curve in curves):
    return None
  svg = draw(id, curves, [], format_y=format_y, x_label="steps", band=band)
  return {"title": title, "about": about, "wide": False, "legend": legend, "svg": svg}
