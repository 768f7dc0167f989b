"""The report: right tables, offline, safe with any text; the command."""

import json
import math
import pathlib
import subprocess
import sys

from report_pages import (
  ENTROPY,
  HOSTILE,
  LENGTHS,
  Page,
  check_offline,
  check_references_and_colors,
  figures,
  loss_at,
  report_page,
  run_config,
  tags_of_a_report,
)

from qwen3_jax.report import write_report
from qwen3_jax.reporting.run_record import visible
from qwen3_jax.workdir import environment

ROOT = pathlib.Path(__file__).parents[2]


def test_page_needs_nothing_from_outside_and_follows_the_colors_of_the_reader(finished, page):
  check_offline(page, finished)
  check_references_and_colors(page, finished)


def test_stage_table(page):
  table = page.table("Stage", "Status")
  assert table["Stage"] == ["s1", "s2", "s3"]
  assert table["Status"] == ["done", "done", "not started"]
  assert table["Steps"] == ["20", "20", "0 of 20"]
  assert table["Tokens"] == ["10.2k", "41k", "–"]
  assert table["Sequence length"] == ["128", "512", "512"]
  assert table["RoPE base"] == ["10,000", "1,000,000", "1,000,000"]
  means = [loss_at(stage, 20) + 0.25 for stage in LENGTHS]
  assert table["Train loss"] == [f"{loss_at(stage, 20):.3f}" for stage in LENGTHS] + ["–"]
  assert table["Validation loss"] == [f"{mean:.3f}" for mean in means] + ["–"]
  assert table["Perplexity"] == [f"{math.exp(mean):.1f}" for mean in means] + ["–"]
  assert table["Tokens/s"] == ["11.1k", "11.1k", "–"]
  assert table["MFU"] == ["25.0%", "25.0%", "–"]
  assert table["In steps"] == ["10s", "10s", "–"]


def test_validation_table_compares_with_the_unigram_entropy(page):
  table = page.table("Stage", "Domain")
  expected = [(stage, domain, loss_at(stage, 20) + 0.5 * i) for stage in LENGTHS for i, domain in enumerate(ENTROPY)]
  assert list(zip(table["Stage"], table["Domain"])) == [(stage, domain) for stage, domain, _ in expected]
  assert table["Validation loss"] == [f"{loss:.3f}" for *_, loss in expected]
  assert table["Unigram entropy"] == [f"{ENTROPY[domain]:.3f}" for _, domain, _ in expected]
  assert table["Below it by"] == [f"{ENTROPY[domain] - loss:.3f}" for _, domain, loss in expected]
  assert table["Perplexity"] == [f"{math.exp(loss):.1f}" for *_, loss in expected]


def test_config_keys_as_the_command_line_takes_them_and_environment(page):
  keys = {row[0]: row[1] for table in page.tables for row in table if len(row) == 2}
  assert keys["stages.s2.rope_theta"] == "1000000.0"
  assert keys["stages.s1.optimizer.peak_lr"] == "0.0003"
  assert keys["model.num_experts"] == "8"
  assert keys["pipeline"] == "(s1, s2, s3)"
  assert keys["jax"] == environment()["jax"]


def test_the_same_run_gives_the_same_bytes(finished, page):
  first = finished.report.read_bytes()
  write_report(finished)
  assert finished.report.read_bytes() == first


def test_markdown(finished, page):
  text = (finished.path / "report.md").read_text(encoding="utf-8")
  assert text.startswith("# small-moe\n")
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
  assert ["s1", "docs", f"{loss_at('s1', 20) + 0.5:.3f}"] in [row[:3] for row in rows]
  assert "```text\ndef f(x): return s2 at 20\n```" in text


def test_hostile_text_is_only_text(run):
  config = run_config() | {"name": HOSTILE}
  config["stages"][HOSTILE] = {"note": HOSTILE, HOSTILE: HOSTILE}
  run.config.write_text(json.dumps(config))
  run.environment.write_text(json.dumps({"command": HOSTILE, HOSTILE: 1}))
  name = "<i>&\x1b\"'$a$"
  run.stage(name).mkdir()
  lines = [
    {"step": 0, f"unigram_entropy/{HOSTILE}": 6.0},
    {"step": 1, "loss": 5.0, "learning_rate": 1.0, "gradient_norm": None, HOSTILE: 1.0},
    {"step": 1, f"validation/{HOSTILE}/loss": 5.0, "validation/loss": 5.0},
  ]
  run.metrics(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
  run.samples(name).write_text(json.dumps({"step": 1, "prompt": HOSTILE, "text": HOSTILE}) + "\n")

  clean_tags = {tag for tag, _ in report_page(run).elements}
  page = Page(run.report.read_text(encoding="utf-8"))
  shown = HOSTILE
  for character in "\x00\x1b\u202e\ud800\uffff\u2028":
    shown = shown.replace(character, f"⟨U+{ord(character):04X}⟩")
  assert shown == visible(HOSTILE)
  assert clean_tags <= tags_of_a_report()
  assert page.text.count(shown) >= 6  # title, heading, domain, legend, sample, config, environment
  assert shown in page.table("Stage", "Domain")["Domain"]
  assert shown + shown in page.text  # prompt and continuation
  assert not set(map(ord, run.report.read_text(encoding="utf-8"))) & {0, 0x1B, 0x202E, 0xFFFF}
  assert set(figures(run)) >= {"Loss", "Validation loss"}  # every drawing is still well-formed XML
  markdown = (run.path / "report.md").read_text(encoding="utf-8")
  assert f"````text\n{shown}{shown}\n````" in markdown
  assert "\n# \\<script\\>" in "\n" + markdown


def _python(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_command(run):
  done = _python("-m", "qwen3_jax.report", f"--workdir={run}")
  assert (done.returncode, done.stdout) == (0, f"{run.path / 'report.html'}\n"), done.stderr
  assert Page(run.report.read_text(encoding="utf-8")).table("Stage", "Status")["Stage"] == ["s1", "s2", "s3"]


def test_command_without_a_run_says_so_in_one_line(tmp_path):
  done = _python("-m", "qwen3_jax.report", f"--workdir={tmp_path}")
  assert done.returncode == 1
  assert done.stderr.startswith(f"error: workdir={tmp_path}: has neither config.json nor stages/")
  assert done.stderr.count("\n") == 1


def test_main_imports_the_report_without_matplotlib():
  script = "import qwen3_jax.main, qwen3_jax.report, sys; sys.exit('matplotlib' in sys.modules)"
  done = _python("-c", script)
  assert done.returncode == 0, done.stderr
