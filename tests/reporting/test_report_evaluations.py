"""Evaluations in the report: tables, curves of budgets, damaged files."""

import json
import os
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from report_pages import (
  HOSTILE,
  Page,
  check_offline,
  check_references_and_colors,
  figures,
  paths,
  report_page,
  run_config,
  tags_of_a_report,
  truncate,
)

from qwen3_jax.reporting.run_record import visible
from qwen3_jax.workdir import Workdir, write_json

BUDGETS = {"0": (0.25, 0.125, 0.5), "16": (0.5, 0.25, 0.75), "64": (0.75, 0.5, 0.875), "unlimited": (1.0, 0.75, 1.0)}


def _evaluation() -> dict:
  """As `qwen3_jax.evaluate` writes it."""
  metrics = {"problems": 12.0, "monotone": 1.0, "perplexity": "NaN"}
  metrics |= {f"budget {b}/{name}": value for b, (value, _, _) in BUDGETS.items() for name in ("accuracy", "halted")}
  intervals = {f"budget {b}/accuracy": [low, high] for b, (_, low, high) in BUDGETS.items()}
  modes = {"think/pass@1": 0.75, "think/obeys": 1.0, "no_think/pass@1": 0.5, "no_think/obeys": 0.875}
  modes |= {"no_think: thinks/answers": 3.0}
  return {
    "budget_curve:cups:12": {"metrics": metrics, "rows": [], "intervals": intervals},
    "modes:cups:12": {"metrics": modes, "rows": [], "intervals": {"think/pass@1": [0.5, 0.9]}},
    "exact_match:x.jsonl": {"metrics": {"exact_match": 0.5}, "rows": []},
  }


def test_evaluations_as_tables(run):
  write_json(run.path / "evaluations" / "fused.json", _evaluation())
  page = report_page(run)
  curve = page.table("", "Accuracy")
  assert curve[""] == [f"budget {budget}" for budget in BUDGETS]
  assert curve["Accuracy"] == [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in BUDGETS.values()]
  assert page.table("", "Pass@1")["Pass@1"] == ["0.750 [0.500, 0.900]", "0.5000"]
  assert page.table("", "Answers") == {"": ["no_think: thinks"], "Answers": ["3"]}
  assert page.table("Metric", "Value") == {"Metric": ["problems", "monotone"], "Value": ["12", "1"]}
  assert [["Metric", "Value"], ["exact_match", "0.5000"]] in page.tables
  for text in ("Evaluation fused", "budget_curve:cups:12", "modes:cups:12", "In brackets 95% intervals."):
    assert text in page.text
  markdown = (run.path / "report.md").read_text(encoding="utf-8")
  assert "## Evaluation fused" in markdown and "### budget\\_curve:cups:12" in markdown
  assert "| budget 16 | 0.500 \\[0.250, 0.750\\] | 0.5000 |" in markdown
  check_references_and_colors(page, run)
  check_offline(page, run)


def test_the_curve_of_budgets(run):
  """A line with its band: places are even in octaves, 0 and no limit one octave from what is next to them."""
  names = [f"evaluations/{name}.json" for name in ("a", "b")]
  for name in names:
    write_json(run.path / name, _evaluation())
  page = report_page(run)
  check_references_and_colors(page, run)  # also where two curves are equal
  svg = figures(run)["Accuracy by thinking budget: budget_curve:cups:12"]
  (line,) = paths(svg, 0)
  octaves, accuracies = np.array([3.0, 4, 6, 7]), np.array([value for value, _, _ in BUDGETS.values()])
  for drawn, values in ((line[:, 0], octaves), (line[:, 1], accuracies)):
    slope, start = np.polyfit(values, drawn, 1)
    np.testing.assert_allclose(slope * values + start, drawn, atol=0.02)
  by_id = {element.get("id"): element for element in svg.iter("{http://www.w3.org/2000/svg}path")}
  (use,) = [e for e in svg.iter("{http://www.w3.org/2000/svg}use") if "fill-opacity: 0.16" in e.get("style", "")]
  assert "fill: var(--c0)" in use.get("style")
  outline = by_id[use.get("{http://www.w3.org/1999/xlink}href").removeprefix("#")].get("d")
  points = np.array([tuple(map(float, point)) for point in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", outline)])
  points += [float(use.get("x")), float(use.get("y"))]
  height = lambda accuracy: np.interp(accuracy, accuracies, line[:, 1])
  for x, (_, low, high) in zip(line[:, 0], BUDGETS.values()):
    here = points[np.abs(points[:, 0] - x) < 0.02, 1]
    assert here.max() - here.min() == pytest.approx(abs(slope) * (high - low), abs=0.1)
    if low >= 0.25:
      assert here.max() == pytest.approx(height(low), abs=0.1)
  texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
  assert [text for text in texts if text in ("0", "16", "64", "no limit")] == ["0", "16", "64", "no limit"]
  assert "var(--c0)" in ElementTree.tostring(svg, encoding="unicode")


@pytest.mark.parametrize(
  "damage",
  [
    lambda path: truncate(path),
    lambda path: path.write_bytes(os.urandom(500)),
    lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text('{"modes:x": 3}'),
    lambda path: path.write_text('{"modes:x": {"metrics": {"a": [1]}}}'),
    lambda path: path.write_text('{"modes:x": {"metrics": {"a": 1}, "intervals": {"a": [0, "1"]}}}'),
    lambda path: path.write_text('{"modes:x": {"metrics": {"a": 1}, "intervals": 3}}'),
    lambda path: (path.unlink(), path.mkdir()),
  ],
)
def test_a_damaged_evaluation_is_named_and_the_others_are_shown(tmp_path, damage):
  run = Workdir(tmp_path)
  write_json(run.config, run_config())
  for name in ("good", "poor"):
    write_json(run.path / "evaluations" / f"{name}.json", _evaluation())
  damage(run.path / "evaluations" / "poor.json")
  page = report_page(run)
  assert "evaluations/poor.json is damaged" in page.text and "good.json" not in page.text
  assert "Evaluation good" in page.text and "Evaluation poor" not in page.text
  assert "evaluations/poor.json is damaged" in (run.path / "report.md").read_text(encoding="utf-8")


def test_one_damaged_task_leaves_the_others(run):
  write_json(run.path / "evaluations" / "half.json", _evaluation() | {"modes:y": {"metrics": None}})
  page = report_page(run)
  assert "evaluations/half.json is damaged" in page.text and "Evaluation half" in page.text
  assert len(page.table("", "Accuracy")[""]) == 4


def test_hostile_evaluations_are_only_text(run):
  metrics = {HOSTILE.replace("/", ""): 1.0, f"{HOSTILE}/{HOSTILE.replace('/', '')}": 0.5, "budget 7/accuracy": 1e300}
  metrics |= {"budget 0/accuracy": 0.0, "budget 99999999999999999999/accuracy": 1.0}
  intervals = {name: [-1e300, 1e300] for name in metrics}
  name = "<b>&amp; x"
  (run.path / "evaluations").mkdir()
  content = json.dumps({HOSTILE: {"metrics": metrics, "intervals": intervals}})
  (run.path / "evaluations" / f"{name}.json").write_text(content)
  clean_tags = {tag for tag, _ in report_page(run).elements}
  page = Page(run.report.read_text(encoding="utf-8"))
  assert f"Evaluation {name}" in page.text and visible(HOSTILE) in page.text
  assert clean_tags <= tags_of_a_report()
  drawn = figures(run)
  assert any(title.startswith("Accuracy by thinking budget") for title in drawn)
