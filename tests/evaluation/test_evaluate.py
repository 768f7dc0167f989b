"""The command, and lm-evaluation-harness with our adapter on local tasks, offline."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3_jax.evaluation.perplexity import rolling
from qwen3_jax.evaluation.scoring import score
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.rollout.generate import complete
from tests.rollout.conftest import tokenizer  # noqa: F401

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "dense"
TEXTS = ["def add(a, b):\n  return a + b\n", "import os\nimport sys\n", "class Error(Exception):\n  pass\n"]
QUESTIONS = [
  ("for i in", [" range", " None", " import"], 0),
  ("def f(", ["x):", "\n\n", " 7"], 1),
  ("im", ["port", "x"], 0),
]


def run(*arguments: str) -> subprocess.CompletedProcess:
  environment = os.environ | {
    "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
  }  # fmt: skip
  command = [sys.executable, "-m", "qwen3_jax.evaluate", *arguments]
  return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module")
def material(tokenizer, tmp_path_factory):  # noqa: F811
  """A folder with texts, problems, and lm_eval tasks that read local files."""
  folder = tmp_path_factory.mktemp("material")
  lines = lambda name, records: (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))
  lines("texts.jsonl", [{"text": text} for text in TEXTS])
  lines("choice.jsonl", [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS])
  tokenizer.save(folder / "tokenizer")
  model = from_parameters(*load_parameters(GOLDEN, "float32"))
  prompts = [tokenizer.encode(question) for question, _, _ in QUESTIONS]
  greedy = complete(model, tokenizer, prompts, temperature=0.0, max_new_tokens=12, stop=["\n\n"])
  right = [samples[0].text for samples in greedy]
  lines("generate.jsonl", [{"question": q[0], "answer": a} for q, a in zip(QUESTIONS, [*right[:2], "something else"])])
  tasks = folder / "tasks"
  tasks.mkdir()
  for file in (ROOT / "tests" / "evaluation" / "lm_eval_tasks").glob("*.yaml"):
    (tasks / file.name).write_text(file.read_text().replace("DATA", str(folder)))
  return folder, model


def test_tasks_of_the_harness_and_of_ours(material, tokenizer):  # noqa: F811
  """One run of the command: accuracies, likelihoods and generations are what the model gives by other ways."""
  folder, model = material
  names = (
    "lm_eval:tiny_choice",
    "lm_eval:tiny_rolling",
    "lm_eval:tiny_generate",
    f"perplexity:{folder / 'texts.jsonl'}",
  )
  ended = run(
    f"--checkpoint={GOLDEN}",
    f"--tokenizer={folder / 'tokenizer'}",
    f"--tasks={','.join(names)}",
    f"--include_path={folder / 'tasks'}",
    f"--json={folder / 'results.json'}",
    "--dtype=float32",
  )
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert "bits_per_byte" in ended.stdout
  choice, rolled, generated, perplexity = (
    json.loads((folder / "results.json").read_text())[name]["metrics"] for name in names
  )

  right = 0
  for question, choices, answer in QUESTIONS:
    context = tokenizer.encode(question)
    pairs = [(ids := tokenizer.encode(question + choice), len(ids) - len(context)) for choice in choices]
    totals = [s.log_probabilities.sum() for s in score(model, *zip(*pairs))]
    right += int(np.argmax(totals)) == answer
  assert choice["acc"] == pytest.approx(right / len(QUESTIONS))

  total = sum(rolling(model, [tokenizer.encode(text) for text in TEXTS], tokenizer.eos_id))
  size = sum(len(text.encode()) for text in TEXTS)
  assert total < -100
  assert rolled["bits_per_byte"] == pytest.approx(-total / math.log(2) / size, rel=1e-5)
  assert perplexity["bits_per_byte"] == pytest.approx(rolled["bits_per_byte"], rel=1e-5)
  assert generated["exact_match"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
  ("tasks", "message"),
  [
    ("perplexty:x.jsonl", "'perplexty' is no kind of task; did you mean 'perplexity'?"),
    ("perplexity", "expected perplexity:FILE"),
    ("exact_match:/nowhere.jsonl", "/nowhere.jsonl: no such file"),
    ("lm_eval:hellaswagg", "lm_eval has no task 'hellaswagg'; did you mean 'hellaswag'?"),
  ],
)
def test_errors_are_one_line(tasks, message):
  ended = run(f"--checkpoint={GOLDEN}", f"--tasks={tasks}")
  assert ended.returncode == 1
  assert message in ended.stderr.splitlines()[-1]
  assert "Traceback" not in ended.stderr
