"""Tables of thinking modes and of compiled programs, and what the model writes from stage to stage."""

import json

import pytest
from report_pages import HOSTILE, report_page, truncate
from student_run import write_student_run

from qwen3_jax.reporting.run_record import read_run, visible
from qwen3_jax.reporting.written_samples import Column, written_samples
from qwen3_jax.workdir import Workdir, write_json


@pytest.fixture
def students(tmp_path) -> Workdir:
  workdir = Workdir(tmp_path / "run")
  write_student_run(workdir, with_tokenizer=False)
  return workdir


def _modes(think: float, no_think: float) -> dict:
  metrics = {"problems": 12.0, "think/pass@1": think, "no_think/pass@1": no_think, "think/well_formed": 1.0}
  intervals = {"think/pass@1": [think - 0.125, think + 0.125]}
  return {"metrics": metrics, "rows": [], "intervals": intervals}


def test_thinking_modes_in_the_order_of_the_stages(students):
  follow = {"metrics": {"dialogs": 4.0, "all turns/obeys": 0.75}, "intervals": {"all turns/obeys": [0.5, 0.875]}}
  folder = students.path / "evaluations"
  write_json(folder / "late.json", {"modes:cups:12": _modes(0.75, 0.5), "think_follow:cups:12": follow})
  write_json(folder / "early.json", {"modes:cups:12": _modes(0.5, 0.25)})
  write_json(folder / "other.json", {"think_follow:cups:12": follow, "exact_match:x": {"metrics": {"exact_match": 1}}})
  write_json(folder / "by_hand.json", {"modes:x": _modes(0.25, 0.25)})
  table = report_page(students).table("After stage", "Problems")
  assert table["After stage"] == ["reasoning", "fused", "by_hand"]
  assert table["Thinking"] == ["50.0% [37.5, 62.5]", "75.0% [62.5, 87.5]", "25.0% [12.5, 37.5]"]
  assert table["No thinking, /no_think"] == ["25.0%", "50.0%", "25.0%"]
  assert table["ThinkFollow"] == ["–", "75.0% [50.0, 87.5]", "–"]
  assert table["Right form, thinking"] == ["100.0%"] * 3 and table["Right form, /no_think"] == ["–"] * 3
  assert "## Thinking modes" in (students.path / "report.md").read_text(encoding="utf-8")


def _report(name: str, fits: bool, **changes) -> dict:
  report = {
    "name": name,
    "topology": "v5p:2x2x1",
    "devices": 4096,
    "mesh": {"fsdp": 4, "expert": 2},
    "fits": fits,
    "hbm": {"peak": 3 * 2**30, "limit": 95.5 * 2**30},
  }
  times = {"predicted_step_s": {"overlapped": 1.0, "scheduled": 2.5}, "predicted_mfu_scheduled": 0.375}
  return report | (times if fits else {}) | changes


def test_compiled_programs(students):
  folder = students.path / "compile"
  small = {"predicted_step_s": {"scheduled": 0.0123}, "decoding": {}, "mesh": {}}
  write_json(folder / "all.json", {"reports": [_report("m s1", True), _report("m s2", False)]})
  (folder / "one.json").write_text(json.dumps(_report(HOSTILE, True, **small)))
  write_json(folder / "tried.json", {"candidates": [_report("remat=full", True)]})
  (folder / "bad.json").write_text('{"reports": [3]}')
  (folder / "cut.json").write_text("{}" * 40)
  truncate(folder / "cut.json")
  page = report_page(students)
  table = page.table("Program", "Topology")
  assert table["Program"] == ["m s1", "m s2", visible(HOSTILE), "remat=full"]
  assert table["Mesh"] == ["fsdp=4, expert=2", "fsdp=4, expert=2", "one device", "fsdp=4, expert=2"]
  assert table["Devices"] == ["4,096"] * 4 and table["Fits"] == ["yes", "no", "yes", "yes"]
  assert table["HBM, GiB per device"] == ["3.00 of 95.50"] * 4
  assert table["Step"] == ["2.500 s", "–", "12.3 ms", "2.500 s"]
  assert table["MFU"] == ["37.5%", "–", "–", "37.5%"]
  assert "compile/bad.json is damaged" in page.text and "compile/cut.json is damaged" in page.text


def test_samples_stand_beside_each_other(run):
  """One column for the start, then the end of each stage."""
  page = report_page(run)
  table = next(table for table in page.tables if table[0][0] == "Prompt")
  assert table == [
    ["Prompt", "s1step 9", "s1step 20", "s2step 20"],
    ["def f(", "x): return s1 at 9", "x): return s1 at 20", "x): return s2 at 20"],
  ]


def test_the_start_of_stages_that_share_it_is_shown_once(students):
  (group,) = written_samples(read_run(students))
  assert group.columns == [Column("distilled", 0), Column("distilled", 6), Column("reinforced", 6)]
  assert group.rows == [("a b", ["distilled at 0", "distilled at 6", "reinforced at 6"])]


def test_prompts_of_other_stages_are_a_table_of_their_own(students):
  lines = [{"step": 4, "prompt": prompt, "text": "t"} for prompt in ("x", "y")]
  students.samples("first").write_text("".join(json.dumps(line) + "\n" for line in lines))
  groups = written_samples(read_run(students))
  assert [[prompt for prompt, _ in group.rows] for group in groups] == [["x", "y"], ["a b"]]
  assert groups[0].columns == [Column("first", 4)]
