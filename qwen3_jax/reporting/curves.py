"""Which curves the report shows. Imports matplotlib: import it only where a report is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qwen3_jax.number_text import compact
from qwen3_jax.reporting.plots import Curve, color, draw, smooth
from qwen3_jax.reporting.run_record import RunRecord, StageRecord, visible

Plot = dict[str, Any]  # title, about, wide, legend: [(label, CSS color, style)], svg

_SMOOTHED_FROM = 60  # points; fewer are drawn as they are


def plots(run: RunRecord) -> list[Plot]:
  """The report's plots, all over the tokens that the run had seen. One without values is left out."""
  candidates = [
    _loss(run),
    _validation(run),
    _metric(run, "learning_rate", "Learning rate", format_y=short),
    _metric(run, "gradient_norm", "Gradient norm", "before clipping", log=True, format_y=short),
    _metric(run, "tokens_per_second", "Throughput", "tokens per second", format_y=compact),
    _metric(run, "mfu", "Model FLOP utilisation", "of the devices' peak", format_y=percent),
    _metric(run, "update_norm", "Update norm", log=True, format_y=short),
    _metric(run, "expert_load_entropy", "Expert load entropy", "over ln(experts); 1 is perfectly even"),
    _metric(run, "expert_max_violation", "Expert max violation", "busiest expert's load over the mean, minus 1"),
    _metric(run, "balance_loss", "Balance loss", "1 when balanced"),
  ]
  return [plot for plot in candidates if plot is not None]


def _spans(run: RunRecord) -> list[tuple[str, float, float]]:
  trained = [stage for stage in run.stages if stage.steps]
  return [(visible(stage.name), stage.tokens_before, stage.tokens_before + stage.tokens) for stage in trained]


def _loss(run: RunRecord) -> Plot | None:
  """Training loss of all stages but those whose loss is a policy's, with the mean validation loss."""
  curves, tops = [], []
  for stage in run.stages:
    x, y = stage.curve("loss")
    if not y.size or stage.has_rollouts:
      continue
    curves += smoothed(x, y)
    tops.append(max(y[0], np.percentile(y, 99.5)))
  if not curves:
    return None
  legend = [("training", color(0), "line")]
  if any(curve.style == "faint" for curve in curves):
    legend = [("training, smoothed", color(0), "line"), ("every logged step", color(0), "faint")]
  if any(stage.series("validation/loss")[1].size for stage in run.stages):
    curves += [Curve(*stage.curve("validation/loss"), 1, "dots") for stage in run.stages]
    legend.append(("validation, mean over domains", color(1), "line"))
  highest = max(float(curve.y.max()) for curve in curves if curve.y.size)
  top = 1.05 * max(tops)  # a spike may leave the plot, the first steps may not
  svg = draw("loss", curves, _spans(run), size=(10.8, 3.4), y_top=top if highest > top else None)
  return {"title": "Loss", "about": "nats per token", "wide": True, "legend": legend, "svg": svg}


def _validation(run: RunRecord) -> Plot | None:
  """Validation loss of each domain, dashed the unigram entropy of the same text."""
  domains = list(dict.fromkeys(domain for stage in run.stages for domain in stage.domains))
  curves, legend = [], []
  for index, domain in enumerate(domains):
    shown = False
    for stage in run.stages:
      curve = Curve(*stage.curve(f"validation/{domain}/loss"), index, "dots")
      entropy = stage.last(f"unigram_entropy/{domain}")
      if entropy is not None and stage.steps:
        ends = np.array([stage.tokens_before, stage.tokens_before + stage.tokens])
        curves.append(Curve(ends, np.full(2, entropy), index, "dashed"))
      curves.append(curve)
      shown = shown or curve.y.size > 0
    if shown:
      legend.append((visible(domain), color(index), "line"))
  if not legend:
    return None
  if any(curve.style == "dashed" for curve in curves):
    legend.append(("unigram entropy of the same text", "var(--muted)", "dashed"))
  svg = draw("validation", curves, _spans(run), size=(10.8, 3.4))
  about = "nats per token, by domain"
  return {"title": "Validation loss", "about": about, "wide": True, "legend": legend, "svg": svg}


def _metric(
  run: RunRecord,
  metric: str,
  title: str,
  about: str = "",
  *,
  log: bool = False,
  format_y: Callable[[float], str] = lambda value: f"{value:g}",
) -> Plot | None:
  curves: list[Curve] = []
  for stage in run.stages:
    x, y = _positive(stage, metric) if log else stage.curve(metric)
    curves += smoothed(x, y) if metric != "learning_rate" else [Curve(x, y, 0)]
  if not any(curve.y.size for curve in curves):
    return None
  svg = draw(metric, curves, _spans(run), log=log, format_y=format_y)
  return {"title": title, "about": about, "wide": False, "legend": [], "svg": svg}


def _positive(stage: StageRecord, metric: str) -> tuple[np.ndarray, np.ndarray]:
  x, y = stage.curve(metric)
  return x[y > 0], y[y > 0]


def smoothed(x: np.ndarray, y: np.ndarray, color: int = 0) -> list[Curve]:
  """Few values as they are; many as a smooth line, in front of all of them."""
  if y.size < _SMOOTHED_FROM:
    return [Curve(x, y, color)]
  return [Curve(x, y, color, "faint"), Curve(*smooth(x, y), color)]


def percent(value: float) -> str:
  return f"{100 * value:g}%"


def short(value: float) -> str:
  return f"{value:.3g}".replace("e-0", "e-")
