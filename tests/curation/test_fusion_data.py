"""The data of fusion as a whole: what comes out, again and after changes, and its command."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_jax.curation.fusion_pipeline import fusion_data
from qwen3_jax.curation.fusion_samples import Sample, Turn
from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.data.prepare import prepare
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.loading import save_pretrained
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.records import write_problems
from tests import fast_compiling
from tests.curation.scripted_asker import ScriptedAsker, by_chance, problem
from tests.curation.test_checklists import Judge
from tests.curation.test_fusion import single
from tests.curation.test_fusion_samples import Writer
from tests.data.conftest import qwen, qwen_path  # noqa: F401
from tests.rollout.chain_model import CONFIG, chain, chain_model
from tests.rollout.conftest import tokenizer  # noqa: F401

ROOT = Path(__file__).parents[2]


def test_the_pipeline(qwen, tmp_path):  # noqa: F811
  problems = [problem(i) for i in range(60)]
  answers = ["red", "a red flower", "Tree."]  # of 4, 3 and 1 of the judge's four criteria
  curated = [Sample(f"c{i}", "creative_writing", (Turn(f"Colour {i}?", answers[i % 3]),)) for i in range(30)]
  curated += [Sample(f"w{i}", "question_answering", (Turn(f"Open {i}?", ""),)) for i in (0, 1)]
  curated += [curated[0], Sample("f", "role_play", (Turn("Be a cat /think", "red"),))]
  direct = [Problem(f"d{i}", "code", "s", f"Direct {i}?", {"kind": "exact"}, f"x{i}") for i in range(10)]
  spoil = lambda step, text, times: "no" if "Colour 3?" in text else None
  settings = FusionSettings(samples=3, most_per_problem=2, threshold=0.75, at_a_time=16, most_tokens=100)

  def run(folder, **options):
    asker = ScriptedAsker(qwen, by_chance)
    options = {"direct": direct, "judge": Judge(spoil), "writer": Writer(), **options}
    return fusion_data(asker, problems, curated, settings, folder, 7, **options)

  report = run(tmp_path / "a")
  counts = {check: found["count"] for check, found in report["removed"].items()}
  # "Tree." of c2, c5, ... and "A Tree." of w1 fail; of c3 there is no checklist.
  assert counts == {"unfit": 1, "duplicate": 1, "checklist": 11, "malformed replies": 1}
  assert report["removed"]["malformed replies"]["examples"][0]["id"] == "c3"
  assert report["removed"]["malformed replies"]["examples"][0]["reason"].endswith("after 3 replies")
  assert report["checklists"] == 32 and report["unchecked"] == 0
  assert report["samples"]["no_think"]["given"] == 30 - 10 - 1 + 1 + 10
  assert report["by_category"]["no_think"] == {"code": 10, "creative_writing": 19, "question_answering": 1}
  assert report["thinking"]["problems"] == 60 and report["thinking"]["answers"] == 180
  assert report["samples"]["think"]["given"] == report["thinking"]["outcomes"]["kept"]
  assert 1 <= report["thinking"]["problems_without"] < 20
  assert json.loads((tmp_path / "a" / "report.json").read_text()) == json.loads(json.dumps(report))
  lines = (tmp_path / "a" / "conversations.jsonl").read_text().splitlines()
  conversations = [json.loads(line) for line in lines]
  assert len(lines) == len(set(lines)) == report["conversations"]["number"]
  assert collections.Counter(one["modes"][-1] for one in conversations) == report["conversations"]["by_mode"]
  sizes = [
    len(qwen.encode(qwen.apply_chat_template(one["messages"], add_generation_prompt=False))) for one in conversations
  ]
  assert max(sizes) <= 100 and sum(sizes) == report["tokens"]["all"]
  assert report["too_long"] > 0
  prepare(f"chat:{tmp_path / 'a' / 'conversations.jsonl'}", tmp_path / "corpus", qwen, workers=1, progress=False)

  # Again: the same files, in another folder or from what is there, where nobody is asked.
  run(tmp_path / "b")
  before = {
    name: (tmp_path / "a" / name).read_bytes() for name in ("conversations.jsonl", "report.json", "thinking.jsonl")
  }
  silent = Judge(lambda *_: pytest.fail("asked again"))
  run(tmp_path / "a", judge=silent)
  for name, content in before.items():
    assert (tmp_path / "a" / name).read_bytes() == content == (tmp_path / "b" / name).read_bytes()
  assert not silent.requests

  unchecked = fusion_data(ScriptedAsker(qwen, by_chance), problems, curated[:30], settings, tmp_path / "c", 7)
  assert unchecked["unchecked"] == 30 and unchecked["samples"]["no_think"]["given"] == 30
  with pytest.raises(ValueError, match="sample 'w0' has no answer, and there is no model"):
    run(tmp_path / "d", writer=None)
  with pytest.raises(ValueError, match="none of the answers to 60 problems can be used: 180 wrong"):
    wrong = ScriptedAsker(qwen, lambda *_: by_chance(problem(0), 0, 0)._replace(score=0.0))
    fusion_data(wrong, problems, curated[:30], settings, tmp_path / "e", 7)


def test_a_template_without_empty_think_blocks(qwen_path, tmp_path):  # noqa: F811
  template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
  )
  folder = tmp_path / "tokenizer"
  Tokenizer.from_pretrained(qwen_path).save(folder)
  (folder / "chat_template.jinja").write_text(template)
  plain = ScriptedAsker(Tokenizer.from_pretrained(folder), by_chance)
  with pytest.raises(ValueError, match=r"chat template opens an answer with '.*expected a think block, an empty one"):
    fusion_data(plain, [problem(i) for i in range(20)], single(20), FusionSettings(), tmp_path / "out", 0)


COMMAND = """
import contextlib, io, json, sys
from absl import flags
from qwen3_jax import fusion_data
for arguments in json.load(sys.stdin):
  flags.FLAGS.unparse_flags()
  for flag in flags.FLAGS.flags_by_module_dict()["qwen3_jax.fusion_data"]:
    flag.unparse()
  flags.FLAGS(["fusion_data", *arguments])
  with contextlib.redirect_stdout(io.StringIO()) as said:
    try:
      fusion_data.main(["fusion_data"])
      error = ""
    except SystemExit as exit:
      error = str(exit)
  print(json.dumps([error, said.getvalue()]))
"""


def test_the_command(tokenizer, tmp_path):  # noqa: F811
  """In one process, for it takes long to start: what is wrong, each said before a model is loaded, then a real run."""
  ids = [tokenizer.special_tokens[name] for name in ("<think>", "</think>", "<|im_end|>")]
  newline, thought, answer = (tokenizer.encode(text)[-1] for text in ("\n", "y", "x"))
  model = from_parameters(CONFIG, chain_model(chain(newline, ids[0], thought, ids[1], answer, ids[2])))
  save_pretrained(tmp_path / "model", model, tokenizer)
  text = tokenizer.decode([answer]).strip()
  problems = [Problem(f"p{i}", "logic", "s", f"Question {i}?", {"kind": "exact"}, text) for i in range(6)]
  write_problems(tmp_path / "problems.jsonl", problems)
  for name, record in (
    ("code", {"prompt": "p", "answer": "r"}),
    ("open", {"prompt": "p"}),
    ("pairs", {"en": "a", "fr": "b"}),
  ):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
  good = {
    "checkpoint": tmp_path / "model", "problems": f"jsonl:{tmp_path}/problems.jsonl", "output": tmp_path / "out",
    "direct_answers": f"jsonl:{tmp_path}/problems.jsonl", "dtype": "float32", "slots": 8, "max_length": 64,
    "max_new_tokens": 8, "set": "samples=4",
    "non_thinking": f"code:{tmp_path}/code.jsonl,translation:{tmp_path}/pairs.jsonl",
  }  # fmt: skip
  wrong = [
    ({"checkpoint": "/nowhere"}, "--checkpoint=/nowhere: no such file or folder"),
    ({"tokenizer": "/nowhere"}, "--tokenizer=/nowhere: no such file or folder"),
    ({"problems": "jsonl:/nowhere"}, "'jsonl:/nowhere': No such file"),
    ({"problems": "cubs:3"}, "Did you mean 'cups'?"),
    ({"direct_answers": "jsonl:/nowhere"}, "'jsonl:/nowhere': No such file"),
    ({"non_thinking": "code:/nowhere"}, "--non_thinking=code:/nowhere: no such file"),
    ({"non_thinking": "cod:/nowhere"}, "expected CATEGORY:FILE. Did you mean 'code'?"),
    (
      {"non_thinking": f"code:{tmp_path}/open.jsonl"},
      "code has prompts without an answer; --writer names who writes it",
    ),
    ({"judge": "http://127.0.0.1:1/v1"}, "names no model; expected URL#MODEL"),
    ({"judge": "/nowhere"}, "--judge=/nowhere: no such folder"),
    ({"writer": "/nowhere"}, "--writer=/nowhere: no such folder"),
    ({"set": "sampels=3"}, "expected NAME=VALUE. Did you mean 'samples'?"),
    ({"set": "samples=0"}, "samples=0, expected a whole number, at least 1"),
  ]
  runs = [good | changes for changes, _ in wrong]
  runs += [{name: value for name, value in good.items() if name not in ("non_thinking", "direct_answers")}, good]
  arguments = [[f"--{name}={value}" for name, value in run.items()] for run in runs]
  environment = os.environ | {
    "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {fast_compiling.FLAGS}",
  }  # fmt: skip
  done = subprocess.run(
    [sys.executable, "-c", COMMAND],
    input=json.dumps(arguments),
    capture_output=True,
    text=True,
    env=environment,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  results = [json.loads(line) for line in done.stdout.splitlines()]
  for (_, message), (error, _) in zip(wrong, results):
    assert error.startswith("error: ") and message in error, error
  assert "--non_thinking, --direct_answers: neither is given" in results[-2][0]
  error, said = results[-1]
  assert not error, error
  conversations = [json.loads(line) for line in (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()]
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  assert report["thinking"]["answers"] == 24 and report["unchecked"] == 3
  assert report["conversations"]["number"] == len(conversations) > 4
  thoughts = {one["messages"][-1]["reasoning_content"] for one in conversations if one["modes"][-1] == "think"}
  assert thoughts == {tokenizer.decode([thought]).strip("\n")}
  assert "24 answers to 6 problems" in said and "3 samples were checked by nobody" in said
