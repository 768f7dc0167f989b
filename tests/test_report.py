"""The report: right numbers and curves, offline, safe with any text, written from whatever a work directory holds."""

import html.parser
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from qwen3_jax.config import base_config, pretrain_stage
from qwen3_jax.metrics import MetricWriter
from qwen3_jax.report import write_report
from qwen3_jax.reporting.plots import downsample, smooth
from qwen3_jax.reporting.run_record import read_run, visible
from qwen3_jax.workdir import Workdir, WorkdirError, environment, write_json

ROOT = pathlib.Path(__file__).parent.parent
_VOID = {"meta", "br", "hr", "img", "input", "link"}
ENTROPY = {"python": 6.25, "docs": 6.5}
LENGTHS = {"s1": 128, "s2": 512}
STEPS, BATCH = 20, 4


class _Page(html.parser.HTMLParser):
  """Tables, texts and elements of a page; fails where tags do not match."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.open: list[str] = []
    self.elements: list[tuple[str, dict]] = []
    self.tables: list[list[list[str]]] = []
    self.text = ""
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in _VOID:
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" in self.open:
      return
    self.text += data
    if "td" in self.open or "th" in self.open:
      self.tables[-1][-1][-1] += data

  def table(self, first: str, second: str) -> dict[str, list[str]]:
    """The columns of the table whose header begins with these two."""
    table = next(table for table in self.tables if table[0][:2] == [first, second])
    return {name: [row[index] for row in table[1:]] for index, name in enumerate(table[0])}


def _loss(stage: str, step: int) -> float:
  return (6.0 if stage == "s1" else 4.0) - 0.1 * step + 0.05 * math.sin(step)


def _config() -> dict:
  config = base_config()
  config.name = "small-moe"
  config.model.update(num_experts=8, num_experts_per_token=2)
  config.pipeline = ("s1", "s2", "s3")
  for name, length, theta in (("s1", 128, 1e4), ("s2", 512, 1e6), ("s3", 512, 1e6)):
    tokens = STEPS * BATCH * length
    config.stages[name] = pretrain_stage(sequence_length=length, batch_size=BATCH, tokens=tokens, rope_theta=theta)
  return config.to_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Workdir:
  """S1 and S2 done, S3 not started; written as the train loop does, evaluation between two logged steps."""
  workdir = Workdir(tmp_path_factory.mktemp("run") / "workdir")
  write_json(workdir.config, _config())
  write_json(workdir.environment, environment())
  before = 0
  for stage, length in LENGTHS.items():
    writer = MetricWriter(workdir, stage)
    writer.write(0, {f"unigram_entropy/{domain}": value for domain, value in ENTROPY.items()})
    for step in range(1, STEPS + 1):
      if step % 2 == 0:
        scalars = {
          "loss": _loss(stage, step),
          "gradient_norm": 1.0 + 0.1 * step,
          "learning_rate": 1e-3,
          "tokens_seen": before + step * BATCH * length,
          "tokens_per_second": 10_000 + 100 * step,
          "mfu": 0.25,
          "step_seconds": 0.5,
          "skipped_steps": 0,
          "expert_load_entropy": 0.9,
          "expert_max_violation": 0.4,
        }
        writer.write(step, scalars)
      if step in (9, 20):
        losses = {domain: _loss(stage, step) + 0.5 * index for index, domain in enumerate(ENTROPY)}
        results = {f"validation/{domain}/loss": loss for domain, loss in losses.items()}
        results |= {f"validation/{domain}/accuracy": 0.125 for domain in losses}
        writer.write(step, results | {"validation/loss": sum(losses.values()) / 2})
        writer.write_sample(step, "def f(", f"x): return {stage} at {step}")
    writer.close()
    workdir.mark_done(stage, STEPS)
    before += STEPS * BATCH * length
  return workdir


@pytest.fixture
def run(finished, tmp_path) -> Workdir:
  """A copy to damage."""
  return Workdir(shutil.copytree(finished.path, tmp_path / "workdir"))


@pytest.fixture(scope="module")
def page(finished) -> _Page:
  path = write_report(finished)
  assert path == finished.path / "report.html"
  return _Page(path.read_text(encoding="utf-8"))


def test_stage_table(page):
  table = page.table("Stage", "Status")
  assert table["Stage"] == ["s1", "s2", "s3"]
  assert table["Status"] == ["done", "done", "not started"]
  assert table["Steps"] == ["20", "20", "0 of 20"]
  assert table["Tokens"] == ["10.2k", "41k", "–"]
  assert table["Sequence length"] == ["128", "512", "512"]
  assert table["RoPE base"] == ["10,000", "1,000,000", "1,000,000"]
  means = [_loss(stage, 20) + 0.25 for stage in LENGTHS]
  assert table["Train loss"] == [f"{_loss(stage, 20):.3f}" for stage in LENGTHS] + ["–"]
  assert table["Validation loss"] == [f"{mean:.3f}" for mean in means] + ["–"]
  assert table["Perplexity"] == [f"{math.exp(mean):.1f}" for mean in means] + ["–"]
  assert table["Tokens/s"] == ["11.1k", "11.1k", "–"]
  assert table["MFU"] == ["25.0%", "25.0%", "–"]
  assert table["In steps"] == ["10s", "10s", "–"]


def test_validation_table_compares_with_the_unigram_entropy(page):
  table = page.table("Stage", "Domain")
  expected = [(stage, domain, _loss(stage, 20) + 0.5 * i) for stage in LENGTHS for i, domain in enumerate(ENTROPY)]
  assert list(zip(table["Stage"], table["Domain"])) == [(stage, domain) for stage, domain, _ in expected]
  assert table["Validation loss"] == [f"{loss:.3f}" for *_, loss in expected]
  assert table["Unigram entropy"] == [f"{ENTROPY[domain]:.3f}" for _, domain, _ in expected]
  assert table["Below it by"] == [f"{ENTROPY[domain] - loss:.3f}" for _, domain, loss in expected]
  assert table["Perplexity"] == [f"{math.exp(loss):.1f}" for *_, loss in expected]


def test_page_needs_nothing_from_outside(finished, page):
  tags = {tag for tag, _ in page.elements}
  assert not tags & {"script", "img", "link", "iframe", "object", "embed"}
  for _, attributes in page.elements:
    for name, value in attributes.items():
      assert name not in ("src", "srcset") and not name.startswith("on")
      assert not name.endswith("href") or value.startswith("#")
  text = finished.report.read_text(encoding="utf-8")
  assert "@import" not in text
  assert set(re.findall(r"url\((.)", text)) <= {"#"}
  assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_every_reference_has_one_target_and_no_color_is_fixed(finished, page):
  ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
  values = [value or "" for _, attributes in page.elements for value in attributes.values()]
  referenced = {match for value in values for match in re.findall(r"^#([\w-]+)|url\(#([\w-]+)\)", value)}
  assert {first or second for first, second in referenced} == set(ids)
  assert len(ids) == len(set(ids))
  styles = [attributes.get("style", "") for tag, attributes in page.elements if tag != "rect"]
  assert not any(re.search(r"#[0-9a-fA-F]{3,6}\b", re.sub(r"url\(.*?\)", "", style)) for style in styles)
  assert "prefers-color-scheme: dark" in finished.report.read_text(encoding="utf-8")


def _figures(workdir: Workdir) -> dict[str, ElementTree.Element]:
  text = workdir.report.read_text(encoding="utf-8")
  figures = re.findall(r"<figcaption>(.*?)(?: <span>.*?)?</figcaption>.*?(<svg.*?</svg>)", text, re.DOTALL)
  return {title.strip(): ElementTree.fromstring(svg) for title, svg in figures}


def _paths(svg: ElementTree.Element, color: int, dashed: bool = False) -> list[np.ndarray]:
  """Points of the curves in a colour."""
  found = []
  for group in svg.iter("{http://www.w3.org/2000/svg}path"):
    style = group.get("style", "")
    if f"stroke: var(--c{color})" in style and "fill: none" in style and ("dasharray" in style) == dashed:
      points = [tuple(map(float, point)) for point in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", group.get("d"))]
      found.append(np.array(points))
  return found


def test_loss_curve_is_the_logged_loss_over_all_tokens(finished, page):
  curves = _paths(_figures(finished)["Loss"], 0)
  assert [len(curve) for curve in curves] == [10, 10]
  drawn = np.concatenate(curves)
  logged, before = [], 0
  for stage, length in LENGTHS.items():
    logged += [(before + step * BATCH * length, _loss(stage, step)) for step in range(2, STEPS + 1, 2)]
    before += STEPS * BATCH * length
  for axis in (0, 1):  # the page's coordinates are a linear map of tokens and loss
    values = np.array(logged)[:, axis]
    slope, start = np.polyfit(values, drawn[:, axis], 1)
    np.testing.assert_allclose(slope * values + start, drawn[:, axis], atol=0.02)
    assert slope > 0 if axis == 0 else slope < 0


def test_validation_curves_and_their_entropy_lines(finished, page):
  svg = _figures(finished)["Validation loss"]
  (solid, _), (dashed, _) = _paths(svg, 0), _paths(svg, 0, dashed=True)
  (other, _), (other_dashed, _) = _paths(svg, 1), _paths(svg, 1, dashed=True)
  assert len(solid) == len(other) == 2
  # 0.5 nats lie between the losses of the domains, 0.25 between their entropies; the axis of values points down.
  nat = (solid[0, 1] - other[0, 1]) / 0.5
  assert nat > 0
  assert dashed[0, 1] - other_dashed[0, 1] == pytest.approx(0.25 * nat, abs=0.05)
  assert solid[0, 1] - dashed[0, 1] == pytest.approx((ENTROPY["python"] - _loss("s1", 9)) * nat, abs=0.05)
  # An evaluation between two logged steps has its own place: step 9 of 20 in the first stage.
  width = dashed[-1, 0] - dashed[0, 0]
  assert (solid[0, 0] - dashed[0, 0]) / width == pytest.approx(9 / 20, abs=0.01)


def test_plots_of_a_mixture_of_experts_and_of_a_dense_run(finished, page, run):
  expected = {"Loss", "Validation loss", "Learning rate", "Gradient norm", "Throughput", "Model FLOP utilisation"}
  experts = {"Expert load entropy", "Expert max violation"}
  assert set(_figures(finished)) == expected | experts
  for stage in LENGTHS:
    lines = [json.loads(line) for line in run.metrics(stage).read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if "expert" not in name} for line in lines]
    run.metrics(stage).write_text("".join(json.dumps(line) + "\n" for line in lines))
  write_report(run)
  assert set(_figures(run)) == expected


def test_samples_of_the_first_and_last_evaluation(page):
  for stage in LENGTHS:
    for step in (9, 20):
      assert f"step {step}def f(x): return {stage} at {step}" in page.text.replace("\n", "")


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
  assert ["s1", "docs", f"{_loss('s1', 20) + 0.5:.3f}"] in [row[:3] for row in rows]
  assert "```text\ndef f(x): return s2 at 20\n```" in text


# Text that the page must not obey.

HOSTILE = (
  "<script>alert(1)</script><b>&amp;'\"{{ 7*7 }}{% raw %} $x_1^2$ \x00\x1b[31m\u202e\ud800\uffff ``` | \u2028 长城😀"
)


def test_hostile_text_is_only_text(run):
  config = _config() | {"name": HOSTILE}
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

  clean_tags = {tag for tag, _ in _Page(write_report(run).read_text(encoding="utf-8")).elements}
  page = _Page(run.report.read_text(encoding="utf-8"))
  shown = HOSTILE
  for character in "\x00\x1b\u202e\ud800\uffff\u2028":
    shown = shown.replace(character, f"⟨U+{ord(character):04X}⟩")
  assert shown == visible(HOSTILE)
  assert clean_tags <= _tags_of_a_report()
  assert page.text.count(shown) >= 6  # title, heading, domain, legend, sample, config, environment
  assert shown in page.table("Stage", "Domain")["Domain"]
  assert shown + shown in page.text  # prompt and continuation
  assert not set(map(ord, run.report.read_text(encoding="utf-8"))) & {0, 0x1B, 0x202E, 0xFFFF}
  assert set(_figures(run)) >= {"Loss", "Validation loss"}  # every drawing is still well-formed XML
  markdown = (run.path / "report.md").read_text(encoding="utf-8")
  assert f"````text\n{shown}{shown}\n````" in markdown
  assert "\n# \\<script\\>" in "\n" + markdown


def _tags_of_a_report() -> set[str]:
  page = (
    "html head meta title style body main h1 h2 h3 p ul li div b span table thead tbody tr th td figure figcaption i"
  )
  return set(f"{page} details summary svg g path use text defs clippath rect".split())


# Whatever a work directory holds.


def _truncate(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
  ("damage", "notice"),
  [
    (lambda run: run.config.unlink(), "config.json is missing"),
    (lambda run: _truncate(run.config), "config.json is damaged"),
    (lambda run: run.config.write_text("[]"), "config.json is damaged"),
    (lambda run: run.config.write_text('{"stages": 3, "pipeline": {"a": 1}, "model": [], "name": 7}'), None),
    (
      lambda run: run.config.write_text('{"stages": {"s1": {"batch_size": 0, "sequence_length": 0, "tokens": 5}}}'),
      None,
    ),
    (lambda run: run.environment.write_bytes(b"\xff\xfe"), "environment.json is damaged"),
    (lambda run: _truncate(run.metrics("s2")), None),
    (lambda run: _truncate(run.samples("s2")), None),
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
  page = _Page(write_report(run).read_text(encoding="utf-8"))
  assert notice is None or notice in page.text
  table = page.table("Stage", "Status")
  assert table["Stage"][:2] == ["s1", "s2"]
  assert {"s1", "s2"} & set(page.table("Stage", "Domain")["Stage"])
  assert "Loss" in _figures(run)


def test_half_a_run(run):
  (run.stage("s2") / "DONE").unlink()
  lines = run.metrics("s2").read_text().splitlines(keepends=True)
  run.metrics("s2").write_text("".join(lines[:4]) + lines[4][:30])
  table = _Page(write_report(run).read_text(encoding="utf-8")).table("Stage", "Status")
  assert table["Status"][1] == "unfinished"
  assert table["Steps"][1] == "6 of 20"
  assert table["Train loss"][1] == f"{_loss('s2', 6):.3f}"
  assert table["Validation loss"][1] == "–"


def test_steps_that_were_not_finite_are_counted_and_leave_a_gap(run):
  writer = MetricWriter(run, "s3")
  for step, loss in enumerate([5.0, math.nan, math.inf, 4.0], start=1):
    writer.write(step, {"loss": loss, "gradient_norm": 1.0, "learning_rate": 1e-3})
  writer.close()
  page = _Page(write_report(run).read_text(encoding="utf-8"))
  assert "stage s3: loss or gradient was not finite in 2 logged steps" in page.text
  assert page.table("Stage", "Status")["Train loss"][2] == "4.000"
  assert len(_paths(_figures(run)["Loss"], 0)[2]) == 2


def test_a_run_that_has_only_a_config(tmp_path):
  workdir = Workdir(tmp_path)
  write_json(workdir.config, _config())
  page = _Page(write_report(workdir).read_text(encoding="utf-8"))
  assert page.table("Stage", "Status")["Status"] == ["not started"] * 3
  assert "environment.json is missing" in page.text
  assert not _figures(workdir)


def test_tokens_of_a_stage_that_ran_alone_start_where_the_run_says(run):
  shutil.rmtree(run.stage("s1"))
  assert read_run(run).stages[1].tokens_before == STEPS * BATCH * LENGTHS["s1"]


@pytest.mark.parametrize("missing", [True, False])
def test_a_folder_without_a_run_is_an_error(tmp_path, missing):
  folder = tmp_path / "absent" if missing else tmp_path
  with pytest.raises(WorkdirError, match=r"^workdir=.*: (no such folder|has neither)[^\n]*$"):
    write_report(Workdir(folder))
  assert list(tmp_path.iterdir()) == []


def test_a_long_run_stays_small(tmp_path):
  workdir = Workdir(tmp_path)
  write_json(workdir.config, _config())
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
  assert max(len(path) for path in _paths(_figures(workdir)["Loss"], 0)) <= 1000


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


# Evaluations.

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
  page = _Page(write_report(run).read_text(encoding="utf-8"))
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
  test_every_reference_has_one_target_and_no_color_is_fixed(run, page)
  test_page_needs_nothing_from_outside(run, page)


def test_the_curve_of_budgets(run):
  """A line with its band: places are even in octaves, 0 and no limit one octave from what is next to them."""
  names = [f"evaluations/{name}.json" for name in ("a", "b")]
  for name in names:
    write_json(run.path / name, _evaluation())
  page = _Page(write_report(run).read_text(encoding="utf-8"))
  test_every_reference_has_one_target_and_no_color_is_fixed(run, page)  # also where two curves are equal
  svg = _figures(run)["Accuracy by thinking budget: budget_curve:cups:12"]
  (line,) = _paths(svg, 0)
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
    lambda path: _truncate(path),
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
  write_json(run.config, _config())
  for name in ("good", "poor"):
    write_json(run.path / "evaluations" / f"{name}.json", _evaluation())
  damage(run.path / "evaluations" / "poor.json")
  page = _Page(write_report(run).read_text(encoding="utf-8"))
  assert "evaluations/poor.json is damaged" in page.text and "good.json" not in page.text
  assert "Evaluation good" in page.text and "Evaluation poor" not in page.text
  assert "evaluations/poor.json is damaged" in (run.path / "report.md").read_text(encoding="utf-8")


def test_one_damaged_task_leaves_the_others(run):
  write_json(run.path / "evaluations" / "half.json", _evaluation() | {"modes:y": {"metrics": None}})
  page = _Page(write_report(run).read_text(encoding="utf-8"))
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
  clean_tags = {tag for tag, _ in _Page(write_report(run).read_text(encoding="utf-8")).elements}
  page = _Page(run.report.read_text(encoding="utf-8"))
  assert f"Evaluation {name}" in page.text and visible(HOSTILE) in page.text
  assert clean_tags <= _tags_of_a_report()
  figures = _figures(run)
  assert any(title.startswith("Accuracy by thinking budget") for title in figures)


# The command.


def _python(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_command(run):
  done = _python("-m", "qwen3_jax.report", f"--workdir={run}")
  assert (done.returncode, done.stdout) == (0, f"{run.path / 'report.html'}\n"), done.stderr
  assert _Page(run.report.read_text(encoding="utf-8")).table("Stage", "Status")["Stage"] == ["s1", "s2", "s3"]


def test_command_without_a_run_says_so_in_one_line(tmp_path):
  done = _python("-m", "qwen3_jax.report", f"--workdir={tmp_path}")
  assert done.returncode == 1
  assert done.stderr.startswith(f"error: workdir={tmp_path}: has neither config.json nor stages/")
  assert done.stderr.count("\n") == 1


def test_main_imports_the_report_without_matplotlib():
  script = "import qwen3_jax.main, qwen3_jax.report, sys; sys.exit('matplotlib' in sys.modules)"
  done = _python("-c", script)
  assert done.returncode == 0, done.stderr


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
  page = _Page(write_report(run).read_text(encoding="utf-8"))
  test_every_reference_has_one_target_and_no_color_is_fixed(run, page)  # the two stages' plots are alike
  assert f"What {name} wrote and learnt from" in page.text
  figures = _figures(run)
  assert {"Right answers", "Entropy", "Length", "Learner and sampler apart"} <= figures.keys()
  assert "Clipped" not in figures  # zeros alone
  for title, metric, color in (("Right answers", "rollout/pass@1", 0), ("Entropy", "rollout/rollout_entropy", 0)):
    (line,) = _paths(figures[title], color)
    for drawn, values in ((line[:, 0], np.arange(1, 13)), (line[:, 1], metrics[metric])):
      slope, start = np.polyfit(values, drawn, 1)
      np.testing.assert_allclose(slope * values + start, drawn, atol=0.02)
  held_out, of_four = (_paths(figures["Right answers"], color)[0] for color in (1, 2))
  assert len(held_out) == len(of_four) == 2 and held_out[0, 1] > of_four[0, 1]  # down is less
  (target,) = _paths(figures["Entropy"], 1, dashed=True)
  assert np.ptp(target[:, 1]) == 0
  assert "fill-opacity: 0.16" in ElementTree.tostring(figures["Entropy"], encoding="unicode")
  curves = _paths(figures["Loss"], 0)
  assert len(curves) == 2  # a policy's loss, which has no meaning beside the others, is not among them
