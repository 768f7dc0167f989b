"""The whole curation, against a real server on this machine."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwen3_jax.curation.ask import CurationError
from qwen3_jax.curation.cold_start import ColdStart, curate
from qwen3_jax.language_models.endpoint import Endpoint, Retries
from qwen3_jax.language_models.language_model import Reply
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.reasoning_gym import reasoning_gym_problems
from qwen3_jax.rewards.verdict import Verdict
from tests.curation.curate_small import main as curate_small
from tests.curation.scripted_model import ScriptedModel
from tests.language_models.chat_server import ChatServer

ROOT = Path(__file__).parent.parent.parent
FILES = ("cold_start.jsonl", "validation.jsonl", "report.json", "report.md")


def test_killed_and_run_again(tmp_path):
  """At two points: the files are those of a run that was left alone, and next to nothing is asked twice."""
  families = ["chain_sum", "gcd", "products", "spell_backward", "leg_counting"]
  problems = reasoning_gym_problems(families, 8, seed=3)
  path = tmp_path / "problems.json"
  path.write_text(json.dumps([dataclasses.asdict(problem) for problem in problems]))
  with ChatServer(ScriptedModel(problems)) as server:
    curate_small(server.url, path, tmp_path / "alone")
    needed = len(server.bodies)
  alone = {name: (tmp_path / "alone" / name).read_bytes() for name in FILES}
  assert len(alone["cold_start.jsonl"].splitlines()) > 15

  folder, asked = tmp_path / "killed", 0
  model = ScriptedModel(problems, seconds=0.002)
  for share in (0.3, 0.8):
    reached, limit = threading.Event(), int(share * needed) - asked

    def answer(body, reached=reached, limit=limit):
      if len(server.bodies) > limit:
        reached.set()
      return model(body)

    with ChatServer(answer) as server:
      command = [sys.executable, "-m", "tests.curation.curate_small", server.url, str(path), str(folder)]
      process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})
      assert reached.wait(60), process.poll()
      process.send_signal(signal.SIGKILL)
      process.wait()
      asked += len(server.bodies)
    assert not (folder / "cold_start.jsonl").exists()
  with ChatServer(model) as server:
    curate_small(server.url, path, folder)
    asked += len(server.bodies)
  assert {name: (folder / name).read_bytes() for name in FILES} == alone
  assert needed <= asked <= needed + 2 * 16  # what was on its way, and samples of queries that lacked some


class Model:
  """Answers by a function of (prompt, request)."""

  name = "scripted"

  def __init__(self, reply):
    self.reply = reply

  def answer(self, requests, on_progress=lambda done, total: None):
    return [
      [self.reply(request.messages[0]["content"], request, sample) for sample in range(request.num_samples)]
      for request in requests
    ]


def problem(i: int, reference: int | None = None) -> Problem:
  answer = str(1000 + 3 * i if reference is None else reference)
  return Problem(
    f"p{i}", "mathematics", "sums", f"A shelf of {1000 + i} books gets {2 * i} more. How many?", {"kind": "x"}, answer
  )


def same(problems, responses):
  return [
    Verdict(float(response.endswith(f" {one.reference}")), "another number")
    for one, response in zip(problems, responses)
  ]


def assistant(text, request, sample):
  word = "VERIFIABLE" if "SEVERAL_QUESTIONS" in text else "I do not know"
  return Reply(f"VERDICT: {word}" if "QUERY" in text else "no idea", "", "stop", 1, 1)


def reasoner(text, request, sample):
  a, b = (int(word) for word in text.split() if word.isdigit())
  if sample == 0:
    return Reply(f"The answer is {a + b + 7}", f"{a} + {b} = {a + b + 7}", "stop", 1, 1)
  if sample == 1:
    return Reply(f"The answer is {a + b}", "No idea, I just pick something.", "stop", 1, 1)
  return Reply(
    f"The answer is {a + b}", f"{a} books and {b} more: {a} + {b} = {a + b}. So {a + b} books.", "stop", 1, 1
  )


def run(problems, folder, **options):
  settings = ColdStart(samples=4, validation_share=0.1, **options)
  return curate(problems, folder, assistant=Model(assistant), reasoner=Model(reasoner), settings=settings, judge=same)


def lines(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_comes_out(tmp_path):
  problems = [problem(i) for i in range(1, 31)]
  report = run(problems, tmp_path)
  conversations, validation = lines(tmp_path / "cold_start.jsonl"), lines(tmp_path / "validation.jsonl")
  assert len(validation) == 3 and len(conversations) == 27
  assert not {one["id"] for one in validation} & {one["id"] for one in conversations}
  assert [one["id"] for one in conversations] == sorted(
    (one["id"] for one in conversations), key=lambda id: int(id[1:])
  )
  user, answer = conversations[0]["messages"]
  assert user == {"role": "user", "content": problems[0].prompt}
  assert answer["role"] == "assistant" and answer["content"] == "The answer is 1003"
  assert answer["reasoning_content"].startswith("1001 books and 2 more")
  removed = {one.name: one.before - one.after for one in report.filters}
  assert removed == {
    "not easily verifiable": 0, "solved without thinking": 0, "balance": 0, "always fails": 0, "wrong": 27,
    "repetition": 0,
    "guess": 27, "inconsistency": 0, "language_mix": 0, "style_shift": 0, "similarity": 0, "enough of a query": 27,
  }  # fmt: skip
  written = json.loads((tmp_path / "report.json").read_text())
  assert written["pass@4"] == {"all": 1.0, "mathematics": 1.0}
  assert written["filters"][4]["removed"] == {"mathematics": 27} and len(written["filters"][4]["examples"]) == 5
  text = (tmp_path / "report.md").read_text()
  assert "| guess | responses | 81 | 27 | 54 |" in text and "another number" in text
  assert not (tmp_path / "review.jsonl").exists()


def test_a_person_looks_at_what_always_fails(tmp_path):
  """Four queries with wrong references: one is given another, one a response, one is dropped, one waits."""
  problems = [problem(i, reference=1 if i <= 4 else None) for i in range(1, 25)]
  run(problems, tmp_path)
  first = lines(tmp_path / "review.jsonl")
  ids = [one["id"] for one in first]
  failing = [f"p{i}" for i in range(1, 5) if f"p{i}" not in {one["id"] for one in lines(tmp_path / "validation.jsonl")}]
  assert ids == failing and len(ids) >= 3
  assert {one["wrong"] for one in first[0]["responses"]} == {"another number"} and len(first[0]["responses"]) == 4
  number = int(ids[0][1:])
  first[0]["reference"] = str(1000 + 3 * number)
  first[1] |= {"response": "It is 1.", "thinking": "A person says so."}
  first[2]["drop"] = True
  (tmp_path / "review.jsonl").write_text("".join(json.dumps(one) + "\n" for one in first))
  report = run(problems, tmp_path)
  made = {one["id"]: one["messages"][1] for one in lines(tmp_path / "cold_start.jsonl")}
  assert made[ids[0]]["content"] == f"The answer is {1000 + 3 * number}"
  assert made[ids[1]] == {"role": "assistant", "content": "It is 1.", "reasoning_content": "A person says so."}
  assert not set(ids[2:]) & set(made)
  failed = next(one for one in report.filters if one.name == "always fails")
  assert failed.removed == {"mathematics": len(ids) - 2}
  before = {name: (tmp_path / name).read_bytes() for name in (*FILES, "review.jsonl")}
  run(problems, tmp_path)
  assert {name: (tmp_path / name).read_bytes() for name in before} == before  # what the person wrote is still there


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"id": "p1", "dorp": true}', r"review\.jsonl, line 1: unknown field 'dorp'. Did you mean 'drop'"),
    ('{"id": "p1", "drop": "yes"}', "drop: expected bool, found str"),
    ('{"id": "p1"}\n{"id": "p1"}', r"line 2: id 'p1' for the second time"),
    ("{", "line 1: not JSON"),
  ],
)
def test_a_mistyped_review(tmp_path, line, message):
  (tmp_path / "review.jsonl").write_text(line)
  with pytest.raises(ValueError, match=message):
    run([problem(1)], tmp_path)


def test_bad_arguments(tmp_path):
  with pytest.raises(ValueError, match=r"1 ids are there more than once, e\.g\. 'p1'"):
    run([problem(1), problem(1)], tmp_path)
  with pytest.raises(ValueError, match="samples=0"):
    ColdStart(samples=0)
  with pytest.raises(ValueError, match="validation_share=1"):
    ColdStart(validation_share=1)


def test_several_processes_find_the_same(tmp_path):
  problems = [problem(i) for i in range(1, 61)]
  for processes in (1, 2):
    run(problems, tmp_path / str(processes), processes=processes)
  assert (tmp_path / "1" / "cold_start.jsonl").read_bytes() == (tmp_path / "2" / "cold_start.jsonl").read_bytes()


def test_through_http(tmp_path):
  """A reasoner whose server is gone ends the run with what is wrong, and writes no result."""
  with ChatServer(ScriptedModel([])) as server:
    url = server.url
  away = Endpoint(url, "away", retries=Retries(attempts=1))
  with pytest.raises(CurationError, match="responses: 12 of 12 replies of away failed"):
    curate(
      [problem(i) for i in range(1, 4)], tmp_path, assistant=Model(assistant), reasoner=away, judge=same,
      settings=ColdStart(validation_share=0.0),
    )  # fmt: skip
  assert not (tmp_path / "cold_start.jsonl").exists()
