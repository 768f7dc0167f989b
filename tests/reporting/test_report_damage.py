"""The report of whatever a work directory holds."""

import math
import os
import shutil

import pytest
from report_pages import (
  BATCH,
  LENGTHS,
  STEPS,
  figures,
  loss_at,
  paths,
  report_page,
  run_config,
  truncate,
)

from qwen3_jax.metrics import MetricWriter
from qwen3_jax.report import write_report
from qwen3_jax.reporting.run_record import read_run
from qwen3_jax.workdir import Workdir, WorkdirError, write_json


@pytest.mark.parametrize(
  ("damage", "notice"),
  [
    (lambda run: run.config.unlink(), "config.json is missing"),
    (lambda run: truncate(run.config), "config.json is damaged"),
    (lambda run: run.config.write_text("[]"), "config.json is damaged"),
    (lambda run: run.config.write_text('{"stages": 3, "pipeline": {"a": 1}, "model": [], "name": 7}'), None),
    (
      lambda run: run.config.write_text('{"stages": {"s1": {"batch_size": 0, "sequence_length": 0, "tokens": 5}}}'),
      None,
    ),
    (lambda run: run.environment.write_bytes(b"\xff\xfe"), "environment.json is damaged"),
    (lambda run: truncate(run.metrics("s2")), None),
    (lambda run: truncate(run.samples("s2")), None),
    (lambda run: run.metrics("s2").write_bytes(os.urandom(5000)), "stage s2: no metrics yet"),
    (lambda run: run.metrics("s2").unlink(), "stage s2: no metrics yet"),
    (lambda run: run.samples("s2").unlink(), None),
    (lambda run: (run.stage("s2") / "DONE").write_text(""), None),
    (lambda run: run.stage("s3").mkdir(), "stage s3: no metrics yet"),
    (lambda run: run.metrics("s1").write_text('{"step": 1, "loss": "x", "time": [], "mfu": {}}\n'), None),
  ],
)
def test_damage_is_named_and_the_rest_is_shown(run, damage, notice):
  damage(run)
  page = report_page(run)
  assert notice is None or notice in page.text
  table = page.table("Stage", "Status")
  assert table["Stage"][:2] == ["s1", "s2"]
  assert {"s1", "s2"} & set(page.table("Stage", "Domain")["Stage"])
  assert "Loss" in figures(run)


def test_half_a_run(run):
  (run.stage("s2") / "DONE").unlink()
  lines = run.metrics("s2").read_text().splitlines(keepends=True)
  run.metrics("s2").write_text("".join(lines[:4]) + lines[4][:30])
  table = report_page(run).table("Stage", "Status")
  assert table["Status"][1] == "unfinished"
  assert table["Steps"][1] == "6 of 20"
  assert table["Train loss"][1] == f"{loss_at('s2', 6):.3f}"
  assert table["Validation loss"][1] == "–"


def test_steps_that_were_not_finite_are_counted_and_leave_a_gap(run):
  writer = MetricWriter(run, "s3")
  for step, loss in enumerate([5.0, math.nan, math.inf, 4.0], start=1):
    writer.write(step, {"loss": loss, "gradient_norm": 1.0, "learning_rate": 1e-3})
  writer.close()
  page = report_page(run)
  assert "stage s3: loss or gradient was not finite in 2 logged steps" in page.text
  assert page.table("Stage", "Status")["Train loss"][2] == "4.000"
  assert len(paths(figures(run)["Loss"], 0)[2]) == 2


def test_a_run_that_has_only_a_config(tmp_path):
  workdir = Workdir(tmp_path)
  write_json(workdir.config, run_config())
  page = report_page(workdir)
  assert page.table("Stage", "Status")["Status"] == ["not started"] * 3
  assert "environment.json is missing" in page.text
  assert not figures(workdir)


def test_tokens_of_a_stage_that_ran_alone_start_where_the_run_says(run):
  shutil.rmtree(run.stage("s1"))
  assert read_run(run).stages[1].tokens_before == STEPS * BATCH * LENGTHS["s1"]


def test_another_model_s_stages_follow_on_the_axis_of_tokens(run):
  """Though the run counts their tokens from its own first stage on."""
  with MetricWriter(run, "s3") as writer:
    writer.write(10, {"loss": 1.0, "tokens_seen": 10 * BATCH * LENGTHS["s2"]})
  assert read_run(run).stages[2].tokens_before == STEPS * BATCH * sum(LENGTHS.values())


@pytest.mark.parametrize("missing", [True, False])
def test_a_folder_without_a_run_is_an_error(tmp_path, missing):
  folder = tmp_path / "absent" if missing else tmp_path
  with pytest.raises(WorkdirError, match=r"^workdir=.*: (no such folder|has neither)[^\n]*$"):
    write_report(Workdir(folder))
  assert list(tmp_path.iterdir()) == []
