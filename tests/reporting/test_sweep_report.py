"""The report of a sweep against numbers that the test wrote into the work directories."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import scipy.stats

from qwen3_jax.reporting.sweep import interval, write_sweep_report
from qwen3_jax.sweeps import units
from qwen3_jax.sweeps.units import Sweep, WorkUnit


def make_sweep(folder, parameters, losses, failed=(), metric="validation/loss", maximize=False):
  """A sweep whose work unit i trained one stage of 20 steps and ended at losses[i]."""
  work_units = []
  for number, (own, loss) in enumerate(zip(parameters, losses)):
    unit = WorkUnit(folder / "units" / f"unit-{number}", own, ["command"])
    stage = unit.folder / "stages" / "s1"
    stage.mkdir(parents=True)
    settings = {"tokens": 20 * 64, "batch_size": 2, "sequence_length": 32}
    (unit.folder / "config.json").write_text(
      json.dumps({"name": "run", "pipeline": ["s1"], "stage": "", "stages": {"s1": settings}})
    )
    lines = [{"step": step, "time": float(step), "loss": loss + 10 / step} for step in range(1, 21)]
    lines += [{"step": step, "time": 1.0, metric: loss + 10 / step - 0.5} for step in (10, 20)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if number in failed:
      unit.output.write_text("starting\nerror: out of <memory>\n\n")
      unit.ended(1, 3.0)
    else:
      (stage / "DONE").write_text("{}")
      unit.ended(0, 65.0)
    work_units.append(unit)
  units.write(Sweep(folder, "experiments/x.py", ("seed=1",), metric, maximize, work_units))
  return folder


def rows_of(markdown, title):
  """The cells of a table of report.md by its heading, without the header."""
  table = markdown.split(f"## {title}\n")[1].strip().split("\n\n")[0]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()][2:]


def test_table_has_final_values_best_and_failures(tmp_path):
  parameters = [{"lr": rate} for rate in (0.5, 1.0, 2.0, 4.0)]
  report = write_sweep_report(make_sweep(tmp_path, parameters, [3.0, 2.0, 2.5, 1.0], failed=[3]))
  markdown = report.with_suffix(".md").read_text()
  assert rows_of(markdown, "Work units") == [
    ["unit-0", "done", "0.5", "3", "3.5", "1m 05s", ""],
    ["unit-1", "done", "1.0", "2", "2.5", "1m 05s", "best"],
    ["unit-2", "done", "2.0", "2.5", "3", "1m 05s", ""],
    ["unit-3", "failed", "4.0", "1", "1.5", "3.0s", r"error: out of \<memory\>"],  # the lowest, but not done
  ]
  assert "3 done · 1 failed" in markdown and "unit-3 failed: error: out of" in markdown
  assert "Over seeds" not in markdown


def test_more_is_better_where_the_study_says_so(tmp_path):
  parameters = [{"kl": value} for value in (0.0, 0.1)]
  folder = make_sweep(tmp_path, parameters, [0.3, 0.4], metric="validation/pass@1", maximize=True)
  write_sweep_report(folder)
  assert [row[-1] for row in rows_of((folder / "report.md").read_text(), "Work units")] == ["", "best"]


def test_means_over_seeds(tmp_path):
  parameters = [{"norm": on, "config.seed": seed} for on in (True, False) for seed in (0, 1, 2)]
  losses = [2.0, 2.1, 2.3, 2.6, 2.2, 2.9]
  markdown = write_sweep_report(make_sweep(tmp_path, parameters, losses)).with_suffix(".md").read_text()
  found = rows_of(markdown, "Over seeds")
  assert [row[0] for row in found] == ["true", "false"] and [row[-1] for row in found] == ["best", ""]
  for row, values in zip(found, (losses[:3], losses[3:])):
    # The final value is the loss + 10 / 20 - 0.5.
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / np.sqrt(3))
    assert row[1:4] == ["3", f"{np.mean(values):.4g}", f"{low:.4g} to {high:.4g}"]
  assert np.isnan(interval([1.0])[1])


@pytest.mark.parametrize("number", [3, 12])
def test_page_is_one_file_with_plots(tmp_path, number):
  parameters = [{"lr": 10.0**-i, "kind": "ab"[i % 2]} for i in range(number)]
  page = write_sweep_report(make_sweep(tmp_path, parameters, np.linspace(2, 3, number))).read_text()
  drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
  assert len(drawings) == 4  # against lr, against kind, curves of the metric, curves of the train loss
  texts = [" ".join(ElementTree.fromstring(svg).itertext()) for svg in drawings]
  assert "lr, logarithmic" in texts[0] and "0.01" in texts[0] and "a" in texts[1].split()
  # The training curves: one path a work unit, with as many points as the lines of metrics.
  paths = [path for path in re.findall(r'd="(M[^"]*)"', drawings[3]) if path.count("L") == 19]
  assert len(paths) == number
  assert not re.findall(r'(?:src|href)="(?!#)', page)  # nothing is loaded from elsewhere
  assert ("the best" in page) == (number > 8)


def test_work_units_that_have_not_begun(tmp_path):
  waiting = WorkUnit(tmp_path / "units" / "a", {"lr": 1.0}, ["command"])
  units.write(Sweep(tmp_path, "experiments/x.py", (), "validation/loss", False, [waiting]))
  markdown = write_sweep_report(tmp_path).with_suffix(".md").read_text()
  assert rows_of(markdown, "Work units") == [["a", "not started", "1.0", "–", "–", ""]]
