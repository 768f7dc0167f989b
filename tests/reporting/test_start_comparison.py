"""Distillation against RL from one start: scores, intervals, seconds, samples and operations by hand."""

import json

import numpy as np
import pytest
import scipy.stats
from report_pages import check_references_and_colors, figures, paths, report_page
from student_run import (
  LENGTH,
  RESPONSE,
  ROWS,
  SCORES,
  STEP_SECONDS,
  STUDENT,
  TEACHER,
  student_config,
  write_student_run,
)

from qwen3_jax.reporting.compute import learning_curve
from qwen3_jax.reporting.numbers import operations
from qwen3_jax.reporting.run_record import read_run
from qwen3_jax.reporting.start_comparison import start_comparisons
from qwen3_jax.workdir import Workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Workdir:
  workdir = Workdir(tmp_path_factory.mktemp("students") / "run")
  write_student_run(workdir)
  return workdir


def _forward(model) -> float:
  """Operations of a token: twice the weights of all products, and attention over half the sequence on average."""
  D, H = model.hidden_size, model.head_dim
  layer = D * H * (2 * model.num_heads + 2 * model.num_kv_heads) + 3 * D * model.intermediate_size
  attention = 4 * model.num_heads * H * (LENGTH + 1) / 2
  return model.num_layers * (2 * layer + attention) + 2 * D * model.vocab_size


def test_table(run):
  page = report_page(run)
  check_references_and_colors(page, run)
  table = page.table("Stage", "Learns by")
  assert table["Stage"] == ["off_policy", "distilled", "reinforced"]
  assert table["Learns by"] == ["supervised fine-tuning", "on-policy distillation", "RL"]
  assert [cell[: cell.index("%")] for cell in table["pass@1"]] == ["25.0", "75.0", "50.0"]
  low, high = scipy.stats.binomtest(25, 50).proportion_ci(0.95, method="wilson")  # 50 problems, half of them right
  assert table["pass@1"][2] == f"50.0% [{100 * low:.1f}, {100 * high:.1f}]"
  assert [cell[: cell.index("%")] for cell in table["pass@4"]] == ["37.5", "87.5", "62.5"]
  assert table["thinking"] == ["31.2%", "81.2%", "56.2%"]
  assert table["not thinking"] == ["18.8%", "68.8%", "43.8%"]
  assert table["In steps"] == ["4.0s", "3.0s", "1.5s"]
  assert table["Samples"] == ["–", "48", "48"]


def test_operations(run):
  (comparison,) = start_comparisons(read_run(run), run)
  start = 3 * _forward(STUDENT) * 4 * ROWS * LENGTH
  assert comparison.start_flops == pytest.approx(start, rel=1e-12)
  for student in comparison.students:
    name = student.stage.name
    assert [(point.step, point.pass1) for point in student.points] == SCORES[name]
    per_token = 4 * _forward(STUDENT) + (_forward(TEACHER) if name == "distilled" else 0)
    final = student.points[-1]
    prompt = final.flops / (6 * ROWS * per_token) - RESPONSE[name]
    assert prompt == pytest.approx(round(prompt), abs=1e-9) and prompt > 8  # chat template and prompt, whole tokens
    for point in student.points:  # step 2 lies between logged ones
      assert point.flops == pytest.approx(final.flops * point.step / 6, rel=1e-12)
      assert point.seconds == pytest.approx(STEP_SECONDS[name] * point.step)
      assert point.samples == ROWS * point.step


def test_other_passes_and_epochs():
  lines = [
    {"step": 0, "validation/pass@1": 0.0},
    {"step": 4, "step_seconds": 1.0, "rollout/response_tokens": 6.0},
    {"step": 4, "validation/pass@1": 1.0, "validation/pass@8": 1.0},
  ]
  start, end = learning_curve(lines, rows=10, prompt_tokens=4, student=2.0, teacher=3.0, epochs=2, forward_passes=1)
  assert (start.flops, start.samples) == (0, 0) and np.isnan(start.passk)
  # 4 steps of 10 rows of 10 tokens learn, half as many answers are written, taught and passed once more.
  assert end.flops == 400 * 3 * 2 + 200 * (2 + 2 + 3)
  assert end.samples == 20 and end.passk == 1.0


def test_plot(run):
  page = report_page(run)
  svg = figures(run)["Right answers against training operations"]
  (comparison,) = start_comparisons(read_run(run), run)
  (distilled,), (reinforced,) = paths(svg, 0), paths(svg, 1)
  x = np.concatenate([[point.flops for point in student.points] for student in comparison.students])
  y = np.concatenate([[point.pass1 for point in student.points] for student in comparison.students])
  drawn = np.concatenate([distilled, reinforced])
  for axis, values in enumerate((x, y)):
    slope, start = np.polyfit(values, drawn[:, axis], 1)
    np.testing.assert_allclose(slope * values + start, drawn[:, axis], atol=0.02)
  assert "distilled, pass@4" in page.text and len(paths(svg, 0, dashed=True)[0]) == 3


def test_what_is_missing_is_left_out(tmp_path):
  workdir = Workdir(tmp_path)
  write_student_run(workdir, with_tokenizer=False)
  (workdir.stage("off_policy") / "config.json").unlink()
  page = report_page(workdir)
  assert page.table("Stage", "Learns by")["Training operations"][0] == "–" and "Prompts are not counted" in page.text
  config = student_config()
  config["stages"]["distilled"] |= {"batch_size": "x", "teachers": [3]}
  workdir.config.write_text(json.dumps(config))
  assert "Learns by" not in report_page(workdir).text


def test_units_of_operations():
  assert [operations(value) for value in (0, 12, 1e3, 1.5e13, 2e24)] == ["0", "12", "1 k", "15 T", "2 Y"]
