"""Curves of a stage that learns from what it writes."""

import xml.etree.ElementTree as ElementTree

import numpy as np
from report_pages import check_references_and_colors, figures, paths, report_page

from qwen3_jax.metrics import MetricWriter
from qwen3_jax.workdir import Workdir


def _rollout_stage(workdir: Workdir, name: str, steps: int = 12) -> dict[str, np.ndarray]:
  """A stage that learns from what it writes; its metrics by name."""
  x = np.arange(1, steps + 1)
  metrics = {
    "loss": np.full(steps, -40.0),
    "tokens_seen": 1000.0 * x,
    "rollout/number": x - 1.0,
    "rollout/pass@1": 0.4 + 0.02 * x,
    "rollout/rollout_entropy": 0.2 / x,
    "entropy_target": np.full(steps, 0.05),
    "rollout/response_tokens": 10.0 + x,
    "clipped_high": np.zeros(steps),
    "log_probability_gap": 1e-6 * x,
  }
  writer = MetricWriter(workdir, name)
  for i, step in enumerate(x):
    writer.write(int(step), {metric: float(values[i]) for metric, values in metrics.items()})
  for step, value in ((0, 0.3), (steps, 0.7)):
    writer.write(step, {"validation/pass@1": value, "validation/pass@4": value + 0.1, "validation/pass@4/hasty": 0.5})
  writer.close()
  return metrics


def test_curves_of_what_a_stage_wrote(run):
  name = "reasoning_<rl>"
  metrics = _rollout_stage(run, name)
  _rollout_stage(run, "general_rl")
  page = report_page(run)
  check_references_and_colors(page, run)  # the two stages' plots are alike
  assert f"What {name} wrote and learnt from" in page.text
  drawn = figures(run)
  assert {"Right answers", "Entropy", "Length", "Learner and sampler apart"} <= drawn.keys()
  assert "Clipped" not in drawn  # zeros alone
  for title, metric, color in (("Right answers", "rollout/pass@1", 0), ("Entropy", "rollout/rollout_entropy", 0)):
    (line,) = paths(drawn[title], color)
    for points, values in ((line[:, 0], np.arange(1, 13)), (line[:, 1], metrics[metric])):
      slope, start = np.polyfit(values, points, 1)
      np.testing.assert_allclose(slope * values + start, points, atol=0.02)
  held_out, of_four = (paths(drawn["Right answers"], color)[0] for color in (1, 2))
  assert len(held_out) == len(of_four) == 2 and held_out[0, 1] > of_four[0, 1]  # down is less
  (target,) = paths(drawn["Entropy"], 1, dashed=True)
  assert np.ptp(target[:, 1]) == 0
  assert "fill-opacity: 0.16" in ElementTree.tostring(drawn["Entropy"], encoding="unicode")
  curves = paths(drawn["Loss"], 0)
  assert len(curves) == 2  # a policy's loss, which has no meaning beside the others, is not among them
