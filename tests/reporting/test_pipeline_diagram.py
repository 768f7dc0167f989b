"""The diagram of a run: which stage starts from which, who teaches whom, and where lines run."""

import json
import re

import pytest
from report_pages import HOSTILE, Page, check_offline, check_references_and_colors, report_page
from student_run import student_config, write_student_run

from qwen3_jax.config import stages_before
from qwen3_jax.config_loading import load
from qwen3_jax.reporting import lineage
from qwen3_jax.reporting.pipeline import PITCH, diagram
from qwen3_jax.reporting.run_record import read_run
from qwen3_jax.reporting.start_comparison import start_comparisons
from qwen3_jax.reporting.summary import read_goodput, tiles, whole_run
from qwen3_jax.workdir import Workdir, write_json


@pytest.fixture
def run(tmp_path) -> Workdir:
  workdir = Workdir(tmp_path)
  write_student_run(workdir, with_tokenizer=False)
  return workdir


def boxes(page: Page, text: str) -> list[list[str]]:
  """Name, time, what it is, figure, status."""
  found = re.findall(r'<div class="box">(.*?)</div>', text)
  return [[re.sub("<.*?>", "", part) for part in re.findall(r"<(?:b|span).*?</(?:b|span)>", box)] for box in found]


def test_boxes(run):
  page = report_page(run)
  check_offline(page, run)
  check_references_and_colors(page, run)
  assert boxes(page, run.report.read_text(encoding="utf-8")) == [
    ["first", "1m 00s", "pretrain · qwen3-0.6b", "validation loss 1.500", "done"],
    ["reasoning", "1m 01s", "rl · qwen3-0.6b", "pass@1 25.0% → 50.0%", "done"],
    ["fused", "1m 00s", "sft · qwen3-0.6b", "validation loss 1.500", "done"],
    ["off_policy", "1m 00s", "sft · student", "–", "done"],
    ["distilled", "1m 00s", "distill · student", "pass@1 25.0% → 75.0%", "done"],
    ["reinforced", "1m 00s", "rl · student", "pass@1 25.0% → 50.0%", "done"],
  ]


def test_lineage(run):
  record = read_run(run)
  assert lineage.starts(record) == {
    "first": None,
    "reasoning": "first",
    "fused": "reasoning",
    "off_policy": None,
    "distilled": "off_policy",
    "reinforced": "off_policy",
  }
  taught = {stage: names for stage, names in lineage.teachers(record).items() if names}
  assert taught == {"off_policy": ["fused"], "distilled": ["fused"]}


@pytest.mark.parametrize("experiment", ["miniature", "miniature:model=moe", "dense_8b"])
def test_starts_are_those_of_the_config(experiment, tmp_path):
  config = load(f"experiments/{experiment.replace(':', '.py:') if ':' in experiment else experiment + '.py'}", [])
  write_json(tmp_path / "config.json", config.to_dict())
  starts = lineage.starts(read_run(Workdir(tmp_path)))
  expected = {name: [*stages_before(config, name), None][-2 if stages_before(config, name) else -1] for name in starts}
  assert starts == expected and len(starts) == len(config.pipeline)


def _verticals(path: str) -> list[tuple[float, float, float]]:
  """(x, first y, last y) of the vertical parts of a path of M, H, V and C."""
  found, x, y = [], 0.0, 0.0
  for command, arguments in re.findall(r"([MHVC]) ([-\d. ]+)", path):
    numbers = list(map(float, arguments.split()))
    if command == "V":
      found.append((x, y, numbers[0]))
      y = numbers[0]
    elif command == "H":
      x = numbers[0]
    else:
      x, y = numbers[-2:]
  return found


def test_lines_lead_from_start_to_stage_and_never_over_another_s_dot(run):
  drawn = diagram(read_run(run))
  dots = [(x, y) for x, y, _ in drawn.dots]
  assert [y - dots[0][1] for _, y in dots] == [PITCH * row for row in range(6)]
  solid = [line for line in drawn.lines if line.style == "line" and "V" in line.path]
  ends = set()
  for line in solid:
    start = tuple(map(float, re.match(r"M ([\d.]+) ([\d.]+)", line.path).groups()))
    ((x, first, last),) = _verticals(line.path)
    ends.add((dots.index(start), dots.index((x, last))))
    assert not [dot for dot in dots if dot[0] == x and first < dot[1] < last]
  assert ends == {(0, 1), (1, 2), (3, 4), (3, 5)}
  teacher = [line for line in drawn.lines if line.style == "dashed"]
  rows = {int(y // PITCH) for line in teacher for y in map(float, re.findall(r"(?:M [\d.]+|V) ([\d.]+)", line.path))}
  assert rows == {2, 3, 4} and drawn.has_teachers
  assert not {x for line in teacher for x, _, _ in _verticals(line.path)} & {x for x, _ in dots}


@pytest.mark.parametrize(
  "change",
  [
    {"after": 3, "model": [], "teachers": "x", "mixture": 7, "kind": None},
    {"after": "reinforced", "model": "gone", "teachers": {"a": 1, "b": {"path": "stage:reinforced"}}},
    {
      "after": HOSTILE,
      "model": HOSTILE,
      "teachers": {HOSTILE: {"path": HOSTILE}},
      "mixture": {HOSTILE: 1, "answers": 1},
    },
  ],
)
def test_whatever_the_config_says(run, change):
  config = student_config()
  config["stages"]["distilled"] |= change
  config["data"]["written"] = {"answers": 3}
  run.config.write_text(json.dumps(config))
  record = read_run(run)
  assert [box.name for box in diagram(record).boxes] == list(config["pipeline"])
  assert all(start is None or start in config["pipeline"] for start in lineage.starts(record).values())
  assert len(start_comparisons(record, run)) <= 1


def test_time_of_the_whole_run(run):
  record = read_run(run)
  assert "From the first line of metrics to the last, 1m 01s" in whole_run(record, read_goodput(run, []))
  lines = [
    {"event": "start", "time": 0.0},
    {"event": "spent", "seconds": {"host": 60.0, "evaluation": 40.0}, "time": 100.0},
    {"event": "end", "finished": True, "time": 100.0},
  ]
  (run.path / "goodput.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  spent = read_goodput(run, [])
  assert whole_run(record, spent) == "The whole run took 1m 40s: goodput 60% of 1m 40s; evaluation 40s."
  assert ("1m 40s", "wall time") in tiles(record, spent)
  notices: list[str] = []
  (run.path / "goodput.jsonl").write_text('{"event": "start", "time": "x"}\n{"event": "start", "time": 1}\n')
  assert read_goodput(run, notices) is None and notices == ["goodput.jsonl is damaged"]
