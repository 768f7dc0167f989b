"""Thinking samples of a model itself: which answers are kept, and that a kill changes nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_jax.curation.rejection_sampling import rejection_sample
from tests.curation.scripted_asker import Said, ScriptedAsker, by_chance, main, problem
from tests.data.conftest import qwen, qwen_path  # noqa: F401

ROOT = Path(__file__).parents[2]


def block(thinking: str, response: str = "4", **changes) -> Said:
  return Said(f"<think>\n{thinking}\n</think>\n\n{response}", **changes)


KEPT = block("2 + 2 = 4")
# (what is said, what becomes of it), were it the only answer to its problem.
CASES = [
  (KEPT, "kept"),
  (block("a\n\nb", "It is **4**.\nSure."), "kept"),
  (block("2 + 2 = 5", "5", score=0.0), "wrong"),
  (block("2 + 2 = 4", score=0.5), "wrong"),
  (block("2 + 2 = 4", ended="length"), "truncated"),
  (block("2 + 2 = 4", ended="context"), "truncated"),
  (block("2 + 2 = 4", ended="environment_error"), "failed"),
  (block("2 + 2 = 4", ended="not_finite"), "failed"),
  (block("2 + 2 = 4", sampled=False), "halted"),
  (block(""), "broken format"),
  (block(" \n "), "broken format"),
  (block("2 + 2 = 4", " \n"), "broken format"),
  (Said("4"), "broken format"),
  (Said("<think>\n2 + 2 = 4"), "broken format"),
  (Said("2 + 2 = 4\n</think>\n\n4"), "broken format"),
  (Said("4<think>\n2 + 2 = 4\n</think>\n\n4"), "broken format"),
  (block("2 + 2", "<think>\n4\n</think>\n\n4"), "broken format"),
  (block("<think>2 + 2", "4"), "broken format"),
  (block("2 + 2", "4<|im_start|>user"), "broken format"),
]


@pytest.fixture
def sample(qwen, tmp_path):  # noqa: F811
  """rejection_sample by a script: {id of a problem: what is said}."""

  def run(script, most=1, **options):
    problems = [problem(i) for i in range(len(script))]
    said = {one.id: answers for one, answers in zip(problems, script)}
    asker = ScriptedAsker(qwen, lambda one, number, seed: said[one.id][number])
    count = len(script[0])
    return rejection_sample(asker, problems, count, most, tmp_path / "log.jsonl", 0, **options)

  return run


def test_what_is_kept(sample):
  found = sample([[said] for said, _ in CASES])
  ids = [f"sampled/p{i}/0" for i, (_, outcome) in enumerate(CASES) if outcome == "kept"]
  assert [one.id for one in found.samples] == ids
  expected = [outcome for _, outcome in CASES]
  assert dict(found.outcomes) == {outcome: expected.count(outcome) for outcome in expected}
  assert found.problems == len(CASES) and found.without == len(CASES) - 2
  (turn,) = found.samples[1].turns
  assert turn == (turn.__class__)(problem(1).prompt, "It is **4**.\nSure.", "a\n\nb")
  assert found.samples[1].category == "mathematics" and found.samples[1].verified and found.samples[1].thinks
  report = found.as_dict()
  assert report["answers"] == len(CASES) and report["problems_without"] == len(CASES) - 2
  assert "kept" not in report["examples"] and len(report["examples"]["broken format"]) == 5
  assert report["examples"]["wrong"][0] == {"id": "p2", "text": "<think> 2 + 2 = 5 </think> 5"}


def test_most_of_a_problem(sample):
  wrong, other, third = block("no", "5", score=0.0), block("another way"), block("a third way")
  found = sample([[wrong, KEPT, KEPT, other, third], [other, wrong, wrong, wrong, wrong], [wrong] * 5], most=2)
  assert [one.id for one in found.samples] == ["sampled/p0/1", "sampled/p0/3", "sampled/p1/0"]
  assert dict(found.outcomes) == {"wrong": 10, "kept": 3, "duplicate": 1, "surplus": 1}
  assert found.without == 1


def test_what_cannot_be(sample, qwen, tmp_path):  # noqa: F811
  for arguments, message in [((0, 1), "samples=0"), ((1, 0), "most=0")]:
    with pytest.raises(ValueError, match=message):
      rejection_sample(ScriptedAsker(qwen, by_chance), [problem(0)], *arguments, tmp_path / "x", 0)
  with pytest.raises(ValueError, match="'p3' occurs twice"):
    rejection_sample(ScriptedAsker(qwen, by_chance), [problem(3)] * 2, 1, 1, tmp_path / "x", 0)
  sample([[KEPT]], described={"checkpoint": "a"})
  with pytest.raises(ValueError, match="checkpoint was 'a', is now 'b'"):
    sample([[KEPT]], described={"checkpoint": "b"})
  with pytest.raises(ValueError, match="problems was"):
    sample([[KEPT], [KEPT]], described={"checkpoint": "a"})
  (tmp_path / "log.jsonl").write_text("no json\n")
  with pytest.raises(ValueError, match="no samples of this kind"):
    sample([[KEPT]])


def test_the_seed_decides(qwen, tmp_path):  # noqa: F811
  run = lambda seed, name: rejection_sample(
    ScriptedAsker(qwen, by_chance), [problem(i) for i in range(30)], 3, 1, tmp_path / name, seed
  )
  first, again, other = run(0, "a"), run(0, "b"), run(1, "c")
  assert first.samples == again.samples != other.samples
  assert 5 < len(first.samples) < 30  # by_chance is right half of the time


def test_cut_anywhere(qwen, tmp_path):  # noqa: F811
  """The file becomes the same again, whole blocks are not asked again, and the others are asked as they were."""
  problems = [problem(i) for i in range(8)]
  run = lambda asker, file: rejection_sample(asker, problems, 2, 1, file, 0, at_a_time=3)
  asker, whole = ScriptedAsker(qwen, by_chance), tmp_path / "whole"
  expected = run(asker, whole)
  assert asker.asked == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6", "p7"]]
  content = whole.read_bytes()
  for cut in [*range(0, len(content), 97), len(content) - 1, len(content)]:
    asker, file = ScriptedAsker(qwen, by_chance), tmp_path / "cut"
    file.write_bytes(content[:cut])
    assert run(asker, file) == expected and file.read_bytes() == content
    lines = max(content[:cut].count(b"\n") - 1, 0)
    blocks = 3 if lines == 8 else lines // 3
    assert asker.asked == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6", "p7"]][blocks:]


def test_killed_and_run_again(qwen_path, tmp_path):  # noqa: F811
  alone, file = tmp_path / "alone.jsonl", tmp_path / "killed.jsonl"
  main(qwen_path, alone, 0.0)
  command = [sys.executable, "-m", "tests.curation.scripted_asker", str(qwen_path), str(file), "0.05"]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  process = subprocess.Popen(command, cwd=ROOT, env=environment)
  deadline = time.monotonic() + 60
  while not file.exists() or file.read_bytes().count(b"\n") < 10:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert 10 <= file.read_bytes().count(b"\n") < 41
  main(qwen_path, file, 0.0)
  assert file.read_bytes() == alone.read_bytes()
  rows = [json.loads(line) for line in alone.read_text().splitlines()[1:]]
  assert [row["id"] for row in rows] == [f"p{i}" for i in range(40)]
  for i, row in enumerate(rows):  # right ones alone
    assert all(one["response"] == str(2 * i) and re.search(rf"\b{2 * i}\.", one["thinking"]) for one in row["kept"])
