"""A teacher's answers: how it is asked, what is filtered, what is written, runs that are killed."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.curation.answer_filters import parse
from qwen3_jax.curation.teacher_answers import TeacherSettings, given_answers, modes, teacher_answers
from qwen3_jax.data.conversation import encode_conversation, thinking_mode
from qwen3_jax.data.pipeline import train_batches
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.sources import documents, open_source
from qwen3_jax.loading import save_pretrained
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.records import write_problems
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.request import Result
from qwen3_jax.rollout.sampling import NOT_THINKING, THINKING
from tests import fast_compiling
from tests.rollout.chain_model import CONFIG, chain_model
from tests.rollout.conftest import tokenizer  # noqa: F401

ROOT = Path(__file__).parents[2]


def problem(name: object, reference: str = "4", prompt: str = "") -> Problem:
  return Problem(f"p{name}", f"d{len(str(name)) % 2}", "s", prompt or f"Question {name}?", {"kind": "exact"}, reference)


class Scripted:
  """In the place of an engine: `write(prompt, number)` is the text and the ending of an answer.

  `number` counts the requests of a prompt. Raises KeyboardInterrupt when it should run for the `runs`-th time.
  """

  def __init__(self, tokenizer, write, runs=10**9):  # noqa: F811
    self.settings = EngineSettings(slots=4, max_length=400)
    self.requests = []
    self._tokenizer, self._write, self._runs = tokenizer, write, runs
    self._updated = False

  def rest(self):
    self._updated = False

  def update(self, params):
    self._updated = True

  def run(self, requests, on_progress):
    assert self._updated
    self._runs -= 1
    if self._runs <= 0:
      raise KeyboardInterrupt
    results, asked = [], collections.Counter()
    for request in requests:
      prompt = self._tokenizer.decode(request.prompt)
      text, ending = self._write(prompt, asked[prompt])
      asked[prompt] += 1
      end = [self._tokenizer.im_end_id] if ending == "stop" else []
      results.append(Result(self._tokenizer.encode(text) + end, finish_reason=ending))
      self.requests.append((prompt, request))
      on_progress(len(results), len(results))
    return results


def ask(folder, tokenizer, problems, write, runs=10**9, **changes):  # noqa: F811
  """The report, the conversations on disk, and the engine."""
  engine = Scripted(tokenizer, write, runs)
  report = teacher_answers(engine, {}, tokenizer, problems, folder, TeacherSettings(**changes))
  return report, [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()], engine


def obedient(prompt: str, number: int) -> tuple[str, str]:
  """Right, in the mode that is asked for, each time with other thoughts."""
  return f"<think>\n{'' if '/no_think<|im_end|>' in prompt else f'thought {number}'}\n</think>\n\n4", "stop"


# Modes


@pytest.mark.parametrize("samples", [1, 3, 8])
@pytest.mark.parametrize("share, plain", [(0.5, 0.2), (0.3, 0.75), (0.0, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_shares_of_the_flags(samples, share, plain):
  settings = TeacherSettings(samples=samples, thinking_share=share, plain_share=plain)
  found = [collections.Counter(modes(problem(i), settings)) for i in range(2000)]
  for counts in found:
    thinks = counts["think"] + counts["plain"]
    assert sum(counts.values()) == samples
    assert thinks in (math.floor(samples * share), math.ceil(samples * share))
    assert counts["plain"] in (math.floor(thinks * plain), math.ceil(thinks * plain))
  # What is not fixed by this is drawn for each problem by itself.
  total = sum(found, collections.Counter())
  slack = 4 * math.sqrt(0.25 / 2000) / samples
  assert abs((total["think"] + total["plain"]) / (2000 * samples) - share) <= slack
  assert abs(total["plain"] / (2000 * samples) - share * plain) <= 2 * slack
  # They depend on problem and seed alone; the first sample is in any mode.
  if samples == 3 and 0 < share < 1:
    assert len({modes(problem(i), settings)[0] for i in range(50)}) == 3
    other = dataclasses.replace(settings, seed=1)
    assert [modes(problem(i), other) for i in range(50)] != [modes(problem(i), settings) for i in range(50)]


def test_how_the_teacher_is_asked(tokenizer, tmp_path):  # noqa: F811
  problems = [problem(i) for i in range(30)] + [problem("odd", prompt="Say /no_think aloud.")]
  changes = {"samples": 4, "plain_share": 0.5, "max_new_tokens": 9}
  report, kept, engine = ask(tmp_path / "a", tokenizer, problems, obedient, **changes)
  assert report["totals"] == {"duplicate": 31, "kept": 93}  # the two without thinking are the same
  assert {name: sum(of["d0"].values()) + sum(of["d1"].values()) for name, of in report["counts"].items()} == {
    "no_think": 62, "plain": 30, "think": 32,
  }  # fmt: skip
  assert len({request.seed for _, request in engine.requests}) == 124
  for prompt, request in engine.requests:
    assert request.max_new_tokens == 9 and tokenizer.im_end_id in request.stop_ids
    assert request.sampling == (NOT_THINKING if "/no_think<|im_end|>" in prompt else THINKING)
    assert prompt.endswith("<|im_start|>assistant\n")  # the flag alone asks for the mode
  flags = {"think": " /think", "no_think": " /no_think", "plain": ""}
  prompts = {p.id: p.prompt for p in problems}
  for conversation in kept:
    user, answer = conversation["messages"]
    assert user["content"] == prompts[conversation["id"]] + flags[conversation["mode"]]
    assert bool(answer["reasoning_content"]) == thinking_mode([user]) == (conversation["mode"] != "no_think")
  assert {c["mode"] for c in kept if c["id"] == "podd"} == {"think", "no_think"}
  # The same again, and other draws with another seed.
  again, _, _ = ask(tmp_path / "b", tokenizer, problems, obedient, **changes)
  assert again == report and (tmp_path / "a/answers.jsonl").read_bytes() == (tmp_path / "b/answers.jsonl").read_bytes()
  _, _, other = ask(tmp_path / "c", tokenizer, problems, obedient, **changes, seed=1)
  assert {r.seed for _, r in other.requests}.isdisjoint(r.seed for _, r in engine.requests)


# Filters

# What is wrong -> (what becomes of it, the answer with thinking, the answer without).
_DEFECTS = {
  "sound": ("kept", "<think>\nhm\n</think>\n\n4", "<think>\n\n</think>\n\n4"),
  "spaces": ("kept", "\n<think>hm</think>4", "<think></think>\n4"),
  "wrong": ("wrong", "<think>\nhm\n</think>\n\n5", "<think>\n\n</think>\n\n5"),
  "cut short": ("truncated", "<think>\nhm", "<think>\n\n</think>\n\n4"),
  "no block": ("broken_format", "4", "4"),
  "not opened": ("broken_format", "hm</think>\n\n4", "</think>\n\n4"),
  "not closed": ("broken_format", "<think>\nhm 4", "<think>\n\n4"),
  "closed twice": ("broken_format", "<think>\nhm\n</think>\n\n</think>4", "<think>\n\n</think></think>\n\n4"),
  "two blocks": ("broken_format", "<think>\nhm\n</think>\n<think>\n</think>\n\n4", "<think></think><think></think>4"),
  "text before": ("broken_format", "Well. <think>\nhm\n</think>\n\n4", "Well. <think>\n\n</think>\n\n4"),
  "disobeys": ("broken_format", "<think>\n\n</think>\n\n4", "<think>\nhm\n</think>\n\n4"),
  "no response": ("broken_format", "<think>\nhm\n</think>\n\n", "<think>\n\n</think>\n\n \n"),
  "control token": ("broken_format", "<think>\nhm\n</think>\n\n4<|im_start|>", "<think>\n\n</think>\n\n<|endoftext|>4"),
  "no text": ("broken_format", "<think>\n\ufffd\n</think>\n\n4", "<think>\n\n</think>\n\n\ufffd4"),
  "breaks down": ("failed", "<think>\nhm", ""),
}  # fmt: skip
_ENDINGS = {"cut short": "length", "breaks down": "not_finite"}


def defective(prompt: str, number: int) -> tuple[str, str]:
  name = next(name for name in _DEFECTS if f"{name}:" in prompt)
  return _DEFECTS[name][1 + ("/no_think" in prompt)], _ENDINGS.get(name, "stop")


@pytest.fixture(scope="module")
def planted(tmp_path_factory, tokenizer):  # noqa: F811
  """A problem for every defect, asked twice in each mode; and one too long to be asked."""
  problems = [problem(name, prompt=f"{name}: 2 + 2?") for name in _DEFECTS]
  problems.append(problem("too long", prompt="very " * 500 + "long"))
  folder = tmp_path_factory.mktemp("planted")
  changes = {"samples": 4, "plain_share": 0.0, "at_a_time": 8}
  return problems, folder / "right", changes, ask(folder / "right", tokenizer, problems, defective, **changes)


def test_every_defect_is_found(planted):
  problems, _, _, (report, kept, _) = planted
  expected = collections.Counter()
  for p in problems:
    outcome = "failed" if p.id == "ptoo long" else _DEFECTS[p.id[1:]][0]
    for mode in ("think", "no_think"):
      expected[mode, p.domain, outcome] += 1 if outcome == "kept" else 2
      if outcome == "kept":
        expected[mode, p.domain, "duplicate"] += 1
  found = {
    (mode, domain, outcome): number
    for mode, domains in report["counts"].items()
    for domain, outcomes in domains.items()
    for outcome, number in outcomes.items()
  }
  assert found == dict(expected)
  assert report["totals"] == {
    "broken_format": 40, "duplicate": 4, "failed": 8, "kept": 4, "truncated": 4, "wrong": 4,
  }  # fmt: skip
  assert [c["id"] for c in kept] == ["psound"] * 2 + ["pspaces"] * 2
  assert {(c["id"], c["mode"]) for c in kept} == {
    (f"p{x}", m) for x in ("sound", "spaces") for m in ("think", "no_think")
  }
  assert all(c["score"] == 1 and c["domain"] == problem(c["id"][1:]).domain for c in kept)
  assert [c["messages"][1] for c in kept if c["mode"] == "think"] == [
    {"role": "assistant", "reasoning_content": "hm", "content": "4"}
  ] * 2
  assert [c["messages"][1] for c in kept if c["mode"] == "no_think"] == [
    {"role": "assistant", "reasoning_content": "", "content": "4"}
  ] * 2


def test_wrong_answers_may_be_kept(planted, tokenizer, tmp_path):  # noqa: F811
  """Of good form, once, with their score."""
  problems, _, changes, _ = planted
  report, kept, _ = ask(tmp_path / "all", tokenizer, problems, defective, keep="all", **changes)
  assert report["totals"] == {
    "broken_format": 40, "duplicate": 6, "failed": 8, "kept": 4, "kept_wrong": 2, "truncated": 4,
  }  # fmt: skip
  assert {c["id"]: c["score"] for c in kept} == {"psound": 1.0, "pspaces": 1.0, "pwrong": 0.0}


def test_parsing():
  assert parse("<think>\n\n a\nb \n</think>\n\n\nc\n", True) == ("\n a\nb ".strip("\n"), "c\n")
  assert parse("<think>\n \n</think>\n\nc", False) == ("", "c")
  assert parse("<think>\n \n</think>\n\nc", True) is None


# What is written


def test_written_text_is_what_the_template_writes(tokenizer, tmp_path):  # noqa: F811
  """Prompt and answer as the model saw them and wrote them, token for token; read by the source `chat:`."""
  problems = [problem(i, prompt=f"Zählt {i} mal 'ab'?\nJa.") for i in range(8)]
  written = {}

  def write(prompt, number):
    empty = "/no_think" in prompt
    text = f"<think>\n{'' if empty else f'Erst {number}.{chr(10) * 2}Dann: größer'}\n</think>\n\n4"
    written.setdefault(prompt, []).append(text)
    return text, "stop"

  _, kept, _ = ask(tmp_path / "x", tokenizer, problems, write, samples=4)
  texts = [tokenizer.apply_chat_template(c["messages"], add_generation_prompt=False) for c in kept]
  expected = [f"{prompt}{text}<|im_end|>\n" for prompt, found in written.items() for text in dict.fromkeys(found)]
  assert sorted(texts) == sorted(expected) and len(texts) > 20
  for document, conversation, text in zip(
    documents(open_source(f"chat:{tmp_path / 'x/answers.jsonl'}")), kept, texts, strict=True
  ):
    assert document.domain == conversation["domain"]
    ids, mask = encode_conversation(tokenizer, **document.conversation)
    assert tokenizer.decode(ids) == text
    covered = tokenizer.decode([id for id, counts in zip(ids, mask) if counts])
    assert covered == re.search(r"<think>.*<\|im_end\|>", text, re.DOTALL)[0]


def record_of(problem: Problem, mode: str, text: str, ending: str) -> dict:
  """An answer as an endpoint gives it, that parses thinking where it is well-formed."""
  flag = "" if mode == "plain" else f" /{mode}"
  answer = {"role": "assistant", "content": text}
  match = re.fullmatch(r"\s*<think>((?:(?!</?think>).)*)</think>((?:(?!</?think>).)*)", text, re.DOTALL)
  if match:
    answer = {"role": "assistant", "reasoning_content": match[1].strip("\n"), "content": match[2].lstrip("\n")}
  record = {"id": problem.id, "messages": [{"role": "user", "content": problem.prompt + flag}, answer]}
  return record if ending == "stop" else record | {"finish_reason": ending}


def test_answers_of_others(planted, tmp_path):
  """The same answers in a file are filtered and stored in the same way."""
  problems, folder, changes, (report, _, _) = planted
  settings = TeacherSettings(**changes)
  records = [
    record_of(p, mode, *defective(f"{p.prompt} /{mode}", 0)) for p in problems[:-1] for mode in modes(p, settings)
  ]
  file = tmp_path / "answers.jsonl"
  file.write_text("".join(json.dumps(record) + "\n" for record in records))
  found = given_answers(file, problems, tmp_path / "out", settings)
  less = {name: number for name, number in report["totals"].items() if name != "failed"}
  # Without a block and without thinking is what endpoints give that take the block out.
  sound = {"broken_format": 38, "kept": 5, "duplicate": 5, "failed": 4}
  assert found["totals"] == dict(sorted((less | sound).items()))
  there = (tmp_path / "out/answers.jsonl").read_text().splitlines()
  assert (folder / "answers.jsonl").read_text().splitlines() == [line for line in there if "pno block" not in line]
  assert given_answers(file, problems, tmp_path / "out", settings) == found


@pytest.mark.parametrize(
  "change, message",
  [
    ({"id": "psoumd"}, "line 2: id: 'psoumd' is none of the 1 problems. Did you mean 'psound'"),
    ({"messages": []}, "line 2: messages"),
    ({"messages": [{"role": "user", "content": "x"}]}, "line 2: messages: 1, the last of role 'user'"),
    ({"finish_reason": 3}, "line 2: finish_reason: expected str"),
  ],
)
def test_malformed_answers_of_others(tmp_path, change, message):
  good = record_of(problem("sound"), "think", "<think>\nhm\n</think>\n\n4", "stop")
  (tmp_path / "x.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
  with pytest.raises(ValueError, match=re.escape(message)):
    given_answers(tmp_path / "x.jsonl", [problem("sound")], tmp_path / "out")


def test_modes_of_others(tmp_path):
  """The last flag counts; tools and earlier turns stay, and are not trained on."""
  turn = lambda role, content: {"role": role, "content": content}
  before = [turn("system", "Be brief. /no_think"), turn("user", "Hi"), turn("assistant", "Ho"), turn("user", "2+2?")]
  rows = []
  for last, thinking in (("", None), ("", "hm"), (" /think", "hm"), (" /think", None)):
    answer = turn("assistant", "4") | ({} if thinking is None else {"reasoning_content": thinking})
    messages = [*before[:-1], turn("user", f"2+2?{last}"), answer]
    rows.append({"id": "p1", "messages": messages, "tools": [{"name": "f"}]})
  plain = turn("assistant", "<think>\nhm\n</think>\n\n4")
  rows.append({"id": "p1", "messages": [turn("user", "2+2?"), plain]})
  (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  report = given_answers(tmp_path / "x.jsonl", [problem(1)], tmp_path / "out")
  assert report["counts"] == {
    "no_think": {"d1": {"kept": 1, "broken_format": 1}},
    "plain": {"d1": {"kept": 1}},
    "think": {"d1": {"kept": 1, "broken_format": 1}},
  }
  kept = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
  assert kept[0]["messages"][:-1] == rows[0]["messages"][:-1] and kept[0]["tools"] == [{"name": "f"}]
  assert [conversation.get("loss") for conversation in kept] == ["last", "last", None]
  assert kept[2]["messages"][-1] == {"role": "assistant", "reasoning_content": "hm", "content": "4"}


# Runs that end early


def files(folder: Path) -> dict[str, bytes]:
  """All but the lock, which names its process."""
  found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
  return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_interrupted_anywhere(tokenizer, tmp_path):  # noqa: F811
  """After any block: nothing is asked again, duplicates of earlier blocks are found, the files are the same."""
  problems = [problem(i, prompt=f"Question {i % 4}?") for i in range(12)]  # duplicates in other blocks
  changes = {"samples": 2, "at_a_time": 4}
  report, _, whole = ask(tmp_path / "whole", tokenizer, problems, obedient, **changes)
  assert report["totals"]["duplicate"] > 8 and len(whole.requests) == 24
  assert sum(report["tokens"].values()) > 24 * 4
  asked, out = [], tmp_path / "out"
  for _ in range(5):
    engine = Scripted(tokenizer, obedient, runs=2)
    with pytest.raises(KeyboardInterrupt):
      teacher_answers(engine, {}, tokenizer, problems, out, TeacherSettings(**changes))
    asked += engine.requests
    (out / "blocks" / ".000001.jsonl.99").write_text("half a li")  # what a kill leaves of a file under way
  asked += ask(out, tokenizer, problems, obedient, runs=2, **changes)[2].requests
  found, _, idle = ask(out, tokenizer, problems, obedient, runs=1, **changes)
  assert asked == whole.requests and not idle.requests
  assert found == report and files(out) == files(tmp_path / "whole")


def test_other_work_in_the_folder(tokenizer, tmp_path):  # noqa: F811
  out = tmp_path / "out"
  ask(out, tokenizer, [problem(1)], obedient)
  for changes, problems, message in (
    ({"samples": 2}, [problem(1)], "samples was 1, is now 2"),
    ({}, [problem(1, reference="5")], "problems was"),
    ({"thinking": NOT_THINKING}, [problem(1)], "thinking was"),
  ):
    with pytest.raises(ValueError, match=message):
      ask(out, tokenizer, problems, obedient, **changes)
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "thesis.tex").write_text("")
  with pytest.raises(ValueError, match=r"holds 'thesis.tex'"):
    ask(tmp_path / "full", tokenizer, [problem(1)], obedient)
  with pytest.raises(ValueError, match="'p1' occurs twice"):
    ask(tmp_path / "new", tokenizer, [problem(1), problem(1)], obedient)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"samples": 0}, "samples=0"),
    ({"thinking_share": 1.5}, "thinking_share=1.5"),
    ({"plain_share": -0.1}, "plain_share"),
    ({"keep": "rigth"}, "Did you mean 'right'"),
  ],
)
def test_settings_that_fit_nothing(changes, message):
  with pytest.raises(ValueError, match=message):
    TeacherSettings(**changes)


# The command


@pytest.fixture(scope="module")
def fickle(tokenizer, tmp_path_factory):  # noqa: F811
  """A model that thinks or not, and is right or not, whatever it is asked: its folder, and problems."""
  start, end, over = (tokenizer.special_tokens[name] for name in ("<think>", "</think>", "<|im_end|>"))
  newline, thought, right, wrong = (tokenizer.encode(text)[-1] for text in ("\n", "m", "x", "y"))
  params = chain_model({newline: start, start: end, thought: end, end: right, right: over, wrong: over})
  embedding, head = params["embed"]["embedding"], params["head"]["kernel"]
  for token, successor in ((start, thought), (end, wrong)):
    head = head.at[:, successor].add(0.06 * jnp.asarray(embedding)[token])
  params["head"]["kernel"] = head
  folder = tmp_path_factory.mktemp("fickle")
  save_pretrained(folder / "teacher", from_parameters(CONFIG, params), tokenizer)
  write_problems(folder / "problems.jsonl", [problem(i, tokenizer.decode([right]).strip()) for i in range(70)])
  return folder


def test_the_command_killed_and_resumed(fickle, tokenizer):  # noqa: F811
  """A process that is killed by SIGKILL, and one that goes on, leave what one process alone does."""
  out = fickle / "out"
  flags = {
    "teacher": fickle / "teacher", "problems": f"jsonl:{fickle / 'problems.jsonl'}", "output": out, "samples": 4,
    "limit": 60, "top_k": 5, "max_length": 64, "max_new_tokens": 8, "slots": 8, "temperature": 0.8,
    "dtype": "float32", "validation_fraction": 0.2, "num_shards": 2,
  }  # fmt: skip
  command = [sys.executable, "-m", "qwen3_jax.distillation_data", *(f"--{name}={flags[name]}" for name in flags)]
  environment = os.environ | {
    "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(fickle / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {fast_compiling.FLAGS}",
  }  # fmt: skip
  run = lambda: subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
  done = run()
  assert done.returncode == 0, done.stderr
  out.rename(fickle / "whole")
  with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
    while not (out / "blocks" / "000002.jsonl").exists() and process.poll() is None:
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL and not (out / "report.json").exists()
  done = run()
  assert done.returncode == 0, done.stderr
  whole = files(fickle / "whole")
  assert files(out) == whole
  assert {"answers.jsonl", "report.json", "plan.json", "corpus/manifest.json"} < whole.keys()
  assert not any(name.startswith("blocks") for name in whole)

  report = json.loads(whole["report.json"])
  assert sum(report["totals"].values()) == 240 and report["top_k"] == 5
  assert min(report["totals"][name] for name in ("kept", "wrong", "broken_format", "duplicate")) > 2
  answers = [json.loads(line) for line in whole["answers.jsonl"].decode().splitlines()]
  assert len(answers) == report["totals"]["kept"] and {a["mode"] for a in answers} == {"think", "plain", "no_think"}
  train, held_out = (PreparedCorpus.open(out / "corpus", split) for split in ("train", "validation"))
  assert train.manifest["tokenizer"] == tokenizer.fingerprint and train.domain_names == ["d0", "d1"]
  assert len(train) + len(held_out) == len(answers) and min(len(train), len(held_out)) > 0
  batches = train_batches({"teacher": (train, 1.0)}, sequence_length=64, batch_size=4, seed=0)
  batch = next(batches)
  batches.close()
  assert batch.top.ids.shape == (4, 64, 5)
  assert np.array_equal(batch.top.ids[..., 0] >= 0, batch.loss_weights > 0)
  # The model is a chain: what it predicts depends on the last token alone.
  by_token = collections.defaultdict(set)
  for token, ids in zip(batch.tokens[batch.loss_weights > 0], batch.top.ids[batch.loss_weights > 0]):
    by_token[int(token)].add(tuple(ids))
  assert len(by_token) >= 4 and all(len(found) == 1 for found in by_token.values())
  ends = tokenizer.encode("x")[-1]
  assert by_token[ends].pop()[0] == tokenizer.im_end_id
  error = report["storage_error"]
  assert 0 < error["outside_mean"] < error["outside_max"] < 1 and 0 < error["rounding_max"] < 0.01
