"""Curves of the report against what was logged."""

import json

import numpy as np
import pytest
from report_pages import BATCH, ENTROPY, LENGTHS, STEPS, figures, loss_at, paths, run_config

from qwen3_jax.report import write_report
from qwen3_jax.reporting.plots import downsample, smooth
from qwen3_jax.workdir import Workdir, write_json


def test_loss_curve_is_the_logged_loss_over_all_tokens(finished, page):
  curves = paths(figures(finished)["Loss"], 0)
  assert [len(curve) for curve in curves] == [10, 10]
  drawn = np.concatenate(curves)
  logged, before = [], 0
  for stage, length in LENGTHS.items():
    logged += [(before + step * BATCH * length, loss_at(stage, step)) for step in range(2, STEPS + 1, 2)]
    before += STEPS * BATCH * length
  for axis in (0, 1):  # the page's coordinates are a linear map of tokens and loss
    values = np.array(logged)[:, axis]
    slope, start = np.polyfit(values, drawn[:, axis], 1)
    np.testing.assert_allclose(slope * values + start, drawn[:, axis], atol=0.02)
    assert slope > 0 if axis == 0 else slope < 0


def test_validation_curves_and_their_entropy_lines(finished, page):
  svg = figures(finished)["Validation loss"]
  (solid, _), (dashed, _) = paths(svg, 0), paths(svg, 0, dashed=True)
  (other, _), (other_dashed, _) = paths(svg, 1), paths(svg, 1, dashed=True)
  assert len(solid) == len(other) == 2
  # 0.5 nats lie between the losses of the domains, 0.25 between their entropies; the axis of values points down.
  nat = (solid[0, 1] - other[0, 1]) / 0.5
  assert nat > 0
  assert dashed[0, 1] - other_dashed[0, 1] == pytest.approx(0.25 * nat, abs=0.05)
  assert solid[0, 1] - dashed[0, 1] == pytest.approx((ENTROPY["python"] - loss_at("s1", 9)) * nat, abs=0.05)
  # An evaluation between two logged steps has its own place: step 9 of 20 in the first stage.
  width = dashed[-1, 0] - dashed[0, 0]
  assert (solid[0, 0] - dashed[0, 0]) / width == pytest.approx(9 / 20, abs=0.01)


def test_plots_of_a_mixture_of_experts_and_of_a_dense_run(finished, page, run):
  expected = {"Loss", "Validation loss", "Learning rate", "Gradient norm", "Throughput", "Model FLOP utilisation"}
  experts = {"Expert load entropy", "Expert max violation"}
  assert set(figures(finished)) == expected | experts
  for stage in LENGTHS:
    lines = [json.loads(line) for line in run.metrics(stage).read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if "expert" not in name} for line in lines]
    run.metrics(stage).write_text("".join(json.dumps(line) + "\n" for line in lines))
  write_report(run)
  assert set(figures(run)) == expected


def test_a_long_run_stays_small(tmp_path):
  workdir = Workdir(tmp_path)
  write_json(workdir.config, run_config())
  rng = np.random.default_rng(0)
  for stage in ("s1", "s2", "s3"):
    workdir.stage(stage).mkdir(parents=True)
    names = ("loss", "gradient_norm", "learning_rate", "tokens_per_second", "mfu", "expert_load_entropy")
    values = rng.random((5000, len(names))).round(4) + 1
    lines = [{"step": i, **dict(zip(names, row))} for i, row in enumerate(values.tolist())]
    lines += [{"step": i, **{f"validation/d{d}/loss": float(d + i % 7) for d in range(8)}} for i in range(2000)]
    workdir.metrics(stage).write_text("".join(json.dumps(line) + "\n" for line in lines))
    sample = json.dumps({"step": 1, "prompt": "p" * 5000, "text": "t" * 50_000})
    workdir.samples(stage).write_text("".join(f"{sample.replace('p', str(i), 1)}\n" for i in range(20)))
  write_report(workdir)
  assert workdir.report.stat().st_size < 1_500_000
  assert max(len(path) for path in paths(figures(workdir)["Loss"], 0)) <= 1000


def test_downsampling_keeps_spikes():
  x, y = np.arange(100_000.0), np.zeros(100_000)
  y[54_321], y[77_777] = 9.0, -9.0
  short_x, short_y = downsample(x, y)
  assert short_x.size <= 1000
  assert np.all(np.diff(short_x) > 0)
  assert {(54_321.0, 9.0), (77_777.0, -9.0)} <= set(zip(short_x, short_y))


def test_smoothing_keeps_straight_lines_and_removes_noise():
  x = np.arange(500.0)
  np.testing.assert_allclose(smooth(x, 3 * x + 1)[1], 3 * x + 1)
  noise = np.random.default_rng(0).normal(size=100_000)
  smooth_x, smooth_y = smooth(np.arange(100_000.0), noise)
  assert smooth_x.size == smooth_y.size == 1000
  assert smooth_y.std() < 0.05
