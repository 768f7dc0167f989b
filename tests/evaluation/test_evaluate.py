"""`python -m qwen3_jax.evaluate` as a user runs it, with lm-evaluation-harness on local tasks, offline."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import numpy as np
import pytest

from qwen3_jax import evaluate
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.evaluation import lm_eval_task
from qwen3_jax.evaluation.perplexity import rolling
from qwen3_jax.loading import save_pretrained
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.rollout.generate import complete
from tests import fast_compiling
from tests.rollout.chain_model import CONFIG, chain, chain_model

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "dense"
TEXTS = ["def add(a, b):\n  return a + b\n", "import os\nimport sys\n", "class Error(Exception):\n  pass\n"]
QUESTIONS = [
  ("for i in", [" range", " None", " import"], 0),
  ("def f(", ["x):", "\n\n", " 7"], 1),
  ("im", ["port", "x"], 0),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Runs the command; its programs are compiled with few optimisations, as those of the tests."""
  environment = os.environ | {
    "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": str(tmp_path_factory.mktemp("huggingface")),
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {fast_compiling.FLAGS}",
  }  # fmt: skip

  def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "qwen3_jax.evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)

  return run


def write_lines(file, records):
  file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def material(model, tokenizer, tmp_path_factory):
  """A folder with texts, a tokenizer, and lm_eval tasks that read local files."""
  folder = tmp_path_factory.mktemp("material")
  write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
  write_lines(folder / "choice.jsonl", [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS])
  tokenizer.save(folder / "tokenizer")
  prompts = [tokenizer.encode(question) for question, _, _ in QUESTIONS]
  greedy = complete(model, tokenizer, prompts, temperature=0.0, max_new_tokens=12, stop=["\n\n"])
  answers = [*(samples[0].text for samples in greedy[:2]), "something else"]
  write_lines(folder / "generate.jsonl", [{"question": q[0], "answer": a} for q, a in zip(QUESTIONS, answers)])
  (folder / "tasks").mkdir()
  for file in (ROOT / "tests" / "evaluation" / "lm_eval_tasks").glob("*.yaml"):
    (folder / "tasks" / file.name).write_text(file.read_text().replace("DATA", str(folder)))
  return folder


def test_tasks_of_the_harness_and_of_ours(run, material, model, reference, tokenizer):
  """Accuracies, likelihoods and generations are what the model gives by other ways."""
  names = [f"lm_eval:tiny_{kind}" for kind in ("choice", "rolling", "generate")]
  names.append(f"perplexity:{material / 'texts.jsonl'}")
  ended = run(
    f"--checkpoint={GOLDEN}",
    f"--tokenizer={material / 'tokenizer'}",
    f"--tasks={','.join(names)}",
    f"--include_path={material / 'tasks'}",
    f"--json={material / 'new' / 'results.json'}",
    "--dtype=float32",
  )
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert all(word in ended.stdout for word in ("bits_per_byte", "acc_norm", "lm_eval:tiny_generate"))
  results = json.loads((material / "new" / "results.json").read_text())
  choice, rolled, generated, perplexity = (results[name]["metrics"] for name in names)

  right, right_by_length = 0, 0
  for question, choices, answer in QUESTIONS:
    before = len(tokenizer.encode(question))
    totals = np.array([reference(tokenizer.encode(question + c))[0][before - 1 :].sum() for c in choices])
    right += int(np.argmax(totals)) == answer
    right_by_length += int(np.argmax(totals / [len(c) for c in choices])) == answer
  assert choice["acc"] == pytest.approx(right / len(QUESTIONS))
  assert choice["acc_norm"] == pytest.approx(right_by_length / len(QUESTIONS))
  assert 0 < right + right_by_length < 2 * len(QUESTIONS)

  total = sum(reference([tokenizer.eos_id, *tokenizer.encode(text)])[0].sum() for text in TEXTS)
  assert total == pytest.approx(
    sum(rolling(model, [tokenizer.encode(text) for text in TEXTS], tokenizer.eos_id)), rel=1e-6
  )
  size = sum(len(text.encode()) for text in TEXTS)
  assert rolled["bits_per_byte"] == pytest.approx(-total / math.log(2) / size, rel=1e-5) and total < -100
  assert perplexity["bits_per_byte"] == pytest.approx(rolled["bits_per_byte"], rel=1e-6)
  assert generated["exact_match"] == pytest.approx(2 / 3)


def test_right_answers(run, tokenizer, tmp_path):
  """Of a model that answers everything with 7, and of sampling from it."""
  seven = next(id for id in range(512) if tokenizer.token_bytes(id) == b"7")
  asked = lambda text: encode_conversation(
    tokenizer, [{"role": "user", "content": text}], None, False, add_generation_prompt=True
  )
  script = chain(asked("3 + 4").ids[-1], seven, tokenizer.im_end_id)
  save_pretrained(tmp_path / "model", from_parameters(CONFIG, chain_model(script)), tokenizer)
  write_lines(tmp_path / "p.jsonl", [{"prompt": "3 + 4", "answer": 7}, {"prompt": "4 + 4", "answer": "8"}])
  common = (
    f"--checkpoint={tmp_path / 'model'}",
    f"--tasks=exact_match:{tmp_path / 'p.jsonl'}",
    "--no_thinking",
    "--dtype=float32",
    f"--json={tmp_path / 'results.json'}",
  )
  ended = run(*common, "--samples=3", "--temperature=0", "--slots=2", "--ks=1,3")
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert "0.5000" in ended.stdout
  (result,) = json.loads((tmp_path / "results.json").read_text()).values()
  assert result["metrics"] == {
    "exact_match": 0.5, "pass@1": 0.5, "pass@3": 0.5, "tokens": 2, "finished": 1, "problems": 2
  }  # fmt: skip
  assert [row["responses"] for row in result["rows"]] == [["7"] * 3] * 2
  assert [row["right"] for row in result["rows"]] == [3, 0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--tasks=perplexty:x.jsonl",), "'perplexty' is no kind of task; did you mean 'perplexity'?"),
    (("--tasks=perplexity",), "expected perplexity:FILE"),
    (("--tasks=exact_match:/nowhere.jsonl",), "/nowhere.jsonl: no such file"),
    (("--tasks=lm_eval:x", "--include_path=/nowhere"), "/nowhere: no such folder"),
    (("--tasks=exact_match:BAD",), "bad.jsonl, line 2: not JSON"),
    (("--tasks=exact_match:LONG",), "long.jsonl, line 1: a prompt of"),
    (("--tasks=exact_match:LONG", "--samples=4", "--ks=8"), "pass@8 needs as many samples a problem, found 4"),
    (("--tasks=exact_match:LONG", "--samples=0"), "--samples=0, expected at least 1"),
    (("--tasks=exact_match:LONG", "--top_p=2"), "top_p=2.0, expected a number in (0, 1]"),
    (("--tasks=perplexity:TEXTS", "--window=300"), "window=300, stride=300: expected"),
    (("--tasks=perplexity:TEXTS", "--json=TASKS"), "tasks is a folder"),
    (("--tasks=perplexity:TEXTS", "--checkpoint=/nowhere"), "/nowhere: no such folder"),
  ],
)
def test_errors_are_one_line(material, capsys, arguments, message):
  (material / "bad.jsonl").write_text('{"prompt": "x", "answer": 1}\n{"prompt": \n')
  write_lines(material / "long.jsonl", [{"prompt": "x " * 400, "answer": 1}])
  names = {"TASKS": "tasks", "BAD": "bad.jsonl", "LONG": "long.jsonl", "TEXTS": "texts.jsonl"}
  for name, file in names.items():
    arguments = [argument.replace(name, str(material / file)) for argument in arguments]
  with pytest.raises(SystemExit) as ended:
    evaluate.main([f"--checkpoint={GOLDEN}", f"--tokenizer={material / 'tokenizer'}", "--dtype=float32", *arguments])
  assert str(ended.value.code).startswith("error: ") and message in ended.value.code
  assert "\n" not in ended.value.code
  assert capsys.readouterr().out == ""


def test_an_error_of_a_process(run):
  ended = run(f"--checkpoint={GOLDEN}", "--tasks=exact_match:/nowhere.jsonl")
  assert ended.returncode == 1
  assert ended.stderr == "error: /nowhere.jsonl: no such file\n"


@pytest.fixture
def no_index():
  """The harness's tasks are looked for anew."""
  lm_eval_task._manager.cache_clear()
  yield
  lm_eval_task._manager.cache_clear()


def test_an_unknown_task_of_the_harness(material, monkeypatch, no_index):
  own_tasks_alone = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)  # seconds faster
  monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_tasks_alone)
  with pytest.raises(SystemExit, match=r"^error: lm_eval has no task 'tiny_choise'; did you mean 'tiny_choice'\?$"):
    evaluate.main([f"--checkpoint={GOLDEN}", "--tasks=lm_eval:tiny_choise", f"--include_path={material / 'tasks'}"])


def test_without_the_harness(monkeypatch, no_index):
  monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
  with pytest.raises(SystemExit, match=r"pip install 'qwen3_jax\[eval\]'"):
    evaluate.main([f"--checkpoint={GOLDEN}", "--tasks=lm_eval:hellaswag"])


def test_results_are_kept_when_a_later_task_fails(material, tmp_path):
  (tmp_path / "empty.txt").write_text("")
  tasks = f"perplexity:{material / 'texts.jsonl'},perplexity:{tmp_path / 'empty.txt'}"
  with pytest.raises(SystemExit, match="the texts are empty"):
    evaluate.main([
      f"--checkpoint={GOLDEN}", f"--tokenizer={material / 'tokenizer'}", f"--tasks={tasks}",
      f"--json={tmp_path / 'r.json'}",
    ])  # fmt: skip
  (result,) = json.loads((tmp_path / "r.json").read_text()).values()
  assert result["metrics"]["texts"] == 3 and result["metrics"]["loss"] > 1
