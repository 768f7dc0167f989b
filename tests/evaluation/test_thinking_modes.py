"""Modes, forms and dialogs: judged as another reading of the texts says, on scripted answers and the real engine."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_jax.config import base_config
from qwen3_jax.evaluate import main as evaluate_main
from qwen3_jax.evaluate import task_names
from qwen3_jax.evaluation.form import disobedience, format_fault
from qwen3_jax.evaluation.questions import Answered
from qwen3_jax.evaluation.think_follow import EARLIER, HERE, NOWHERE, SYSTEM, ThinkFollow
from qwen3_jax.evaluation.thinking_modes import ThinkingModes
from qwen3_jax.loading import save_pretrained
from qwen3_jax.problems.cups import cups_problems
from qwen3_jax.problems.records import write_problems
from qwen3_jax.report import write_report
from qwen3_jax.rollout.completion import Completion
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import make_engine
from qwen3_jax.workdir import Workdir, write_json
from tests import fast_compiling
from tests.evaluation.thinking_chain import GREEDY, THOUGHTS, problem, thinking_chain

ROOT = Path(__file__).parents[2]
EMPTY = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
  ("text", "as_thinking", "without", "form", "form_without"),
  [
    ("<think>\nhm\n</think>\n\n7", "", "thinks", "", "thinks"),
    (EMPTY + "7", "does not think", "", "", ""),
    ("7", "no think block", "no think block", "no think block", "no think block"),
    ("<think>\nhm", "not closed", "not closed", "not closed", "not closed"),
    ("hm\n</think>\n\n7", "not opened", "not opened", "not opened", "not opened"),
    (EMPTY + "7 <think>", *["more than one block"] * 4),
    (EMPTY + EMPTY + "7", *["more than one block"] * 4),
    ("</think> 7 <think>", *["more than one block"] * 4),
    ("7 <think>hm</think>", "", "thinks", "text before the block", "text before the block"),
    ("<think>\nhm\n</think>\n\n", "", "thinks", "no response", "thinks"),
    ("<think>\nhm\n</think>.\n\n", "", "thinks", "no response", "thinks"),
    (EMPTY, "does not think", "", "no response", "no response"),
  ],
)
def test_forms(text, as_thinking, without, form, form_without):
  assert (disobedience(text, True), disobedience(text, False)) == (as_thinking, without)
  assert (format_fault(text, True), format_fault(text, False)) == (form, form_without)


def answered(text: str, finish_reason: str = "stop") -> Answered:
  """An answer whose text says what it is."""
  thinking, mark, response = text.partition("</think>")
  thinking = thinking.partition("<think>")[2].strip()
  response = (response if mark else text).strip()
  found = Completion(text, thinking, response, [0], [0.0], [0.0], [True], finish_reason, "closed" if mark else "none")
  return Answered(text, found, len(thinking.split()))


def test_accuracy_by_mode_of_scripted_answers():
  """Four problems, two samples: how often each mode is right, and which answers are malformed, is written down here."""
  problems = [problem(i, "7") for i in range(4)]
  right = {"think": [2, 2, 2, 1], "no_think": [2, 0, 1, 0], "off": [0, 0, 0, 0]}
  asked = []

  def ask(questions):
    groups = []
    for question in questions:
      (message,) = question.messages
      flag = message["content"].partition(" /")[2]
      mode = flag if flag else "off"
      assert question.enable_thinking == (mode != "off") and question.thinks == (mode == "think")
      assert question.thinking_budget == (16 if mode == "think" else None)
      number = int(re.search(r"question (\d)", message["content"])[1])
      asked.append((mode, number, tuple(question.seeds)))
      letters = ["7"] * right[mode][number] + ["8"] * (2 - right[mode][number])
      block = "<think>\none two three\n</think>\n\n" if mode == "think" else EMPTY
      answers = [answered(block + letter) for letter in letters]
      if mode == "no_think" and number == 3:
        answers = [answered("<think>\nhm hm\n</think>\n\n8"), answered("<think>\nhm", "length")]
      groups.append(answers)
    return groups

  found = ThinkingModes(problems, samples=2, ks=(1, 2), thinking_budget=16).run_with(ask)
  metrics = found.metrics
  assert (metrics["think/pass@1"], metrics["think/pass@2"]) == (7 / 8, 1)
  assert (metrics["no_think/pass@1"], metrics["no_think/pass@2"]) == (3 / 8, 1 / 2)
  assert metrics["thinking off/pass@1"] == 0
  assert (metrics["think/obeys"], metrics["no_think/obeys"], metrics["thinking off/obeys"]) == (1, 3 / 4, 1)
  assert metrics["no_think/well_formed"] == 3 / 4 and metrics["no_think/truncated"] == 1 / 8
  assert (metrics["no_think: thinks/answers"], metrics["no_think: not closed/answers"]) == (1, 1)
  assert (metrics["think/thinking_tokens"], metrics["no_think/thinking_tokens"]) == (3, 3 / 8)
  assert not any(name.startswith(("think:", "thinking off:")) for name in metrics)
  for name, (low, high) in found.intervals.items():
    assert 0 <= low <= metrics[name] <= high <= 1 and high - low > 0.1
  assert {mode for mode, _, _ in asked} == set(right)
  seeds = {number: {s for _, n, s in asked if n == number} for number in range(4)}
  assert all(len(of) == 1 for of in seeds.values()) and len(set().union(*seeds.values())) == 4
  assert len(found.rows) == 12 and found.rows[0]["responses"] == ["7", "7"]


@pytest.fixture(scope="module")
def chain_ask(tokenizer):
  settings = EngineSettings(slots=8, max_length=256, adjustments=False)
  return GREEDY.of_engine(make_engine(thinking_chain(tokenizer), tokenizer, settings), tokenizer)


def test_modes_of_a_model_that_always_thinks(chain_ask):
  """Unless its template closes the thinking for it."""
  found = ThinkingModes([problem(0, "a"), problem(1, "b")], asking=GREEDY).run_with(chain_ask)
  thinking = {mode: found.metrics[f"{mode}/thinking_tokens"] for mode in ("think", "no_think", "thinking off")}
  assert thinking == {"think": THOUGHTS, "no_think": THOUGHTS, "thinking off": 0}
  assert [found.metrics[f"{mode}/obeys"] for mode in thinking] == [1, 0, 1]
  assert [found.metrics[f"{mode}/well_formed"] for mode in thinking] == [1, 0, 1]
  assert found.metrics["no_think: thinks/answers"] == 2
  assert [row["right"] for row in found.rows] == [1, 0, 1, 0, 0, 1]  # a after thinking, b without


def last_flag(messages) -> tuple[bool, str]:
  """Whether the last flag asks for thinking, and where it stands: read by words, from the end."""
  for back, message in enumerate(reversed([m for m in messages if m["role"] != "assistant"])):
    for word in reversed(message["content"].split()):
      if word in ("/think", "/no_think"):
        place = SYSTEM if message["role"] == "system" else HERE if back == 0 else EARLIER
        return word == "/think", place
  return True, NOWHERE


def test_dialogs_of_a_scripted_model(tokenizer):
  """It obeys but for third turns, and for flags of the system turn that forbid thinking."""
  evaluator = ThinkFollow(cups_problems(20, 0, (1, 2)), dialogs=60, turns=4, seed=5)
  truth, seeds = [], set()

  def ask(questions):
    groups = []
    for question in questions:
      thinks, place = last_flag(question.messages)
      assert question.thinks == thinks and question.enable_thinking
      roles = [message["role"] for message in question.messages if message["role"] != "system"]
      turn = (len(roles) + 1) // 2
      assert roles == ["user", "assistant"] * (turn - 1) + ["user"]
      assert "SECRET" not in tokenizer.apply_chat_template(question.messages)  # earlier thinking is out of sight
      obeys = turn != 3 and (thinks or place != SYSTEM)
      truth.append((thinks, place, turn, obeys))
      seeds.update(question.seeds)
      groups.append([answered(("<think>\nSECRET\n</think>\n\n" if thinks == obeys else EMPTY) + "a")])
    return groups

  found = evaluator.run_with(ask)
  share = lambda keep: sum(o for *t, o in truth if keep(*t)) / sum(keep(*t) for *t, _ in truth)
  metrics = found.metrics
  assert len(seeds) == len(truth) == metrics["all turns/turns"]
  assert metrics["all turns/obeys"] == pytest.approx(share(lambda *t: True))
  assert metrics["thinking/obeys"] == pytest.approx(share(lambda thinks, *_: thinks))
  assert metrics["not thinking/obeys"] == pytest.approx(share(lambda thinks, *_: not thinks))
  for name in (HERE, EARLIER, SYSTEM, NOWHERE):
    assert metrics[f"{name}/obeys"] == pytest.approx(share(lambda _, place, __, name=name: place == name))
  for turn in (1, 2, 3, 4):
    assert metrics[f"turn {turn}/obeys"] == pytest.approx(share(lambda _, __, t, turn=turn: t == turn))
  assert metrics["turn 3/obeys"] == 0 and 0 < metrics["all turns/obeys"] < 1
  assert found.intervals["turn 3/obeys"].low == 0 and found.intervals["turn 3/obeys"].high < 0.2
  wrong = sum(not obeys for *_, obeys in truth)
  assert sum(value for name, value in metrics.items() if name.endswith("/answers")) == wrong
  assert metrics["not_asked"] == 0 and len(found.rows) == 60


def test_dialogs_are_random_and_repeatable():
  problems = cups_problems(20, 0, (1, 2))
  evaluator = ThinkFollow(problems, dialogs=200, turns=3, seed=1)
  dialogs = evaluator.dialogs_to_hold()
  assert dialogs == evaluator.dialogs_to_hold() != dataclasses.replace(evaluator, seed=2).dialogs_to_hold()
  assert {len(dialog.turns) for dialog in dialogs} == {2, 3}
  assert 20 < sum(bool(dialog.system) for dialog in dialogs) < 90
  flags = [re.findall(r"/\w+", turn.content) for dialog in dialogs for turn in dialog.turns]
  assert max(map(len, flags)) == 1
  for flag in (["/think"], ["/no_think"], []):
    assert 0.2 < flags.count(flag) / len(flags) < 0.5
  assert not any("/" in dialog.turns[0].content for dialog in dialogs if dialog.system)
  prompts = {problem.prompt for problem in problems}
  assert all(turn.content.partition(" /")[0] in prompts for dialog in dialogs for turn in dialog.turns)


def test_dialogs_of_a_model_that_always_thinks(chain_ask):
  evaluator = ThinkFollow(cups_problems(8, 0, (1, 2)), dialogs=8, turns=3, asking=GREEDY)
  found = evaluator.run_with(chain_ask)
  assert (found.metrics["thinking/obeys"], found.metrics["not thinking/obeys"]) == (1, 0)
  assert found.metrics["not thinking: thinks/answers"] == found.metrics["not thinking/turns"] > 0
  assert found.metrics["all turns/turns"] == sum(len(d.turns) for d in evaluator.dialogs_to_hold())
  assert found.metrics["turn 2/turns"] == 8 and found.metrics["not_asked"] == 0


def test_a_dialog_that_fills_the_context_ends(chain_ask):
  problems = [problem(i, "a", f"{i} " + "x " * 55) for i in range(4)]
  evaluator = ThinkFollow(problems, dialogs=6, turns=4, asking=GREEDY)
  found = evaluator.run_with(chain_ask)
  wanted = sum(len(dialog.turns) for dialog in evaluator.dialogs_to_hold())
  assert found.metrics["not_asked"] > 0
  assert found.metrics["all turns/turns"] + found.metrics["not_asked"] == wanted


def test_what_cannot_be():
  with pytest.raises(ValueError, match="dialogs=3, turns=1"):
    ThinkFollow([problem(0, "a")], dialogs=3, turns=1)
  with pytest.raises(ValueError, match="none without a flag"):
    ThinkFollow([problem(0, "a", "what does /think mean?")])
  with pytest.raises(ValueError, match=r"samples=2, ks=\(1, 4\)"):
    ThinkingModes([problem(0, "a")], samples=2, ks=(1, 4))
  with pytest.raises(ValueError, match="no such kind"):
    ThinkingModes([dataclasses.replace(problem(0, "a"), verifier={"kind": "exacly"})])


def test_commas_within_a_spec():
  gym = 'reasoning-gym:chain_sum,letter_counting:8:0:{"min_terms": 2, "max_terms": 3}'
  text = f"perplexity:a.txt, modes:{gym},think_follow:cups:8,budget_curve:{gym}"
  assert task_names(text) == ["perplexity:a.txt", f"modes:{gym}", "think_follow:cups:8", f"budget_curve:{gym}"]
  assert task_names("exact_match:a,perplexty:b") == ["exact_match:a", "perplexty:b"]  # as without specs


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ("--tasks=modes:cup:8",),
      "'cup:8': expected kind:..., kind one of jsonl, reasoning-gym, cups. Did",
    ),
    (("--tasks=modes",), "'modes', expected modes:SPEC"),
    (("--tasks=modes:cups:8,perplexty:x",), "'cups:8,perplexty:x': expected cups:COUNT"),
    (("--tasks=modes:cups:8", "--no_thinking"), "--no_thinking with modes: it asks in every mode"),
    (("--tasks=budget_curve:cups:8", "--thinking_budget=3"), "--thinking_budget with budget_curve: its budgets are"),
    (("--tasks=budget_curve:cups:8", "--budgets=4,-1"), "budgets=(4, -1), expected tokens from 0 on"),
    (("--tasks=think_follow:cups:8", "--turns=1"), "--turns=1, expected at least 2"),
  ],
)
def test_errors_before_a_model_is_loaded(arguments, message):
  with pytest.raises(SystemExit) as ended:
    evaluate_main(["--checkpoint=/nowhere", *arguments])
  assert message in str(ended.value.code)


def test_the_command_and_the_report(tokenizer, tmp_path):
  """As a user runs it, and then looks at the run's report."""
  save_pretrained(tmp_path / "model", thinking_chain(tokenizer), tokenizer)
  spec = f"jsonl:{tmp_path / 'a,b.jsonl'}"
  write_problems(tmp_path / "a,b.jsonl", [problem(i, "a") for i in range(4)])
  workdir = Workdir(tmp_path / "run")
  write_json(workdir.config, base_config().to_dict())
  tasks = [f"{kind}:{spec}" for kind in ("modes", "think_follow", "budget_curve")]
  command = [
    sys.executable, "-m", "qwen3_jax.evaluate", f"--checkpoint={tmp_path / 'model'}", f"--tasks={','.join(tasks)}",
    f"--json={workdir.path / 'evaluations' / 'fused.json'}", "--dtype=float32", "--temperature=0",
    "--presence_penalty=0", "--max_new_tokens=24", "--dialogs=4", "--turns=2", "--budgets=2,0", "--limit=3",
    "--slots=4",
  ]  # fmt: skip
  environment = os.environ | {
    "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "200",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {fast_compiling.FLAGS}",
  }  # fmt: skip
  ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
  assert ended.returncode == 0, ended.stderr[-3000:]
  results = json.loads((workdir.path / "evaluations" / "fused.json").read_text())
  assert list(results) == tasks
  modes, follow, curve = (results[task] for task in tasks)
  assert (modes["metrics"]["think/pass@1"], modes["metrics"]["thinking off/pass@1"]) == (1, 0)
  assert (follow["metrics"]["thinking/obeys"], follow["metrics"]["not thinking/obeys"]) == (1, 0)
  assert [curve["metrics"][f"budget {b}/accuracy"] for b in (0, 2, "unlimited")] == [0, 0, 1]
  low, high = curve["intervals"]["budget unlimited/accuracy"]
  assert low == pytest.approx(3 / (3 + 1.959964**2)) and high == pytest.approx(1)  # Wilson's of 3 of 3
  assert f"1.000 [{low:.3f}, 1.000]" in ended.stdout and "think_follow" in ended.stdout
  assert re.search(r"budget unlimited\W+1.000 \[", ended.stdout)
  page = write_report(workdir).read_text(encoding="utf-8")
  assert "Evaluation fused" in page and "no limit" in page and f"1.000 [{low:.3f}, 1.000]" in page
  assert "is damaged" not in page
