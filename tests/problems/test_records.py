"""Problems from and to files; messages say which line."""

import json
import os

import pytest

from qwen3_jax.data.sources import SourceError
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.records import problems_of, read_problems, write_problems
from qwen3_jax.rewards.registry import verify

PROBLEMS = [
  Problem("a", "mathematics", "sums", "1 + 1?\u2028", {"kind": "numeric"}, "2"),
  Problem("b", "code", "", "\ud800 square", {"kind": "exact", "answer": ["x", "y"]}),
]


def test_round_trip(tmp_path):
  path = tmp_path / "folder" / "problems.jsonl"
  write_problems(path, PROBLEMS)
  assert read_problems(path) == PROBLEMS
  assert read_problems(path, limit=1) == PROBLEMS[:1]
  with pytest.raises(ValueError, match="problem 3: id 'a' is that of problem 1"):
    write_problems(path, [*PROBLEMS, PROBLEMS[0]])
  with pytest.raises(ValueError, match="problem 'c' cannot be written as JSON"):
    write_problems(path, [*PROBLEMS, Problem("c", "", "", "", {"kind": object()})])
  assert read_problems(path) == PROBLEMS  # what failed changed nothing
  assert os.listdir(path.parent) == ["problems.jsonl"]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "not JSON"),
    ("[]", "expected an object"),
    ({"id": "c"}, "no field 'domain'"),
    ({"ids": "c"}, "ids: a problem has no such field. Did you mean 'id'"),
    ({"id": 3}, "id: expected str, found int"),
    ({"id": ""}, "id: empty"),
    ({"verifier": "numeric"}, "verifier: expected dict, found str"),
    ({"verifier": {"kind": "numerics"}}, "problem 'c': .*Did you mean 'numeric'"),
    ({"id": "a"}, "id 'a' is that of .*, line 1"),
  ],
)
def test_malformed_lines_are_named(tmp_path, line, message):
  path = tmp_path / "problems.jsonl"
  whole = {"id": "c", "domain": "", "sub_domain": "", "prompt": "", "verifier": {"kind": "numeric"}, "reference": "1"}
  write_problems(path, PROBLEMS[:1])
  if isinstance(line, dict):
    line = json.dumps(line if line in ({"id": "c"}, {"ids": "c"}) else whole | line)
  path.write_text(path.read_text() + line + "\n")
  with pytest.raises(ValueError, match=f"problems.jsonl, line 2: .*{message}"):
    read_problems(path)


ROWS = [
  {"question": "2 + 2?", "answer": "two and two\n#### 4", "level": "easy"},
  {"question": "3 + 3?", "answer": "#### no #### 6", "level": "hard"},
  {"question": "2 + 2?", "answer": "two and two\n#### 4", "level": "easy"},
]
FIELDS = {"prompt": "question", "reference": "answer", "sub_domain": "level"}
OPTIONS = {"verifier": {"kind": "numeric"}, "domain": "mathematics", "answer_after": "####"}


def check_rows(problems):
  assert [(one.prompt, one.reference, one.domain, one.sub_domain) for one in problems] == [
    ("2 + 2?", "4", "mathematics", "easy"),
    ("3 + 3?", "6", "mathematics", "hard"),
  ]
  assert len({one.id for one in problems}) == 2
  assert verify(problems[1], "\\boxed{6}").right and not verify(problems[1], "\\boxed{4}").right


def test_jsonl(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  problems = problems_of(f"jsonl:{path}", FIELDS, **OPTIONS)
  check_rows(problems)
  assert problems == problems_of(f"jsonl:{tmp_path}", FIELDS, **OPTIONS, limit=2) or len(problems) == 2
  with pytest.raises(ValueError, match=r"rows.jsonl, line 1: no field 'questio'. Did you mean 'question'"):
    problems_of(f"jsonl:{path}", {"prompt": "questio"}, verifier={"kind": "exact", "answer": "x"})
  with pytest.raises(ValueError, match="line 1: answer: no '=' in it"):
    problems_of(f"jsonl:{path}", FIELDS, **OPTIONS | {"answer_after": "="})
  with pytest.raises(ValueError, match="line 3: id '2 \\+ 2\\?' occurs twice"):
    problems_of(f"jsonl:{path}", FIELDS | {"id": "question"}, **OPTIONS)
  with pytest.raises(ValueError, match=r"fields.promt: .*Did you mean 'prompt'"):
    problems_of(f"jsonl:{path}", {"promt": "question"}, **OPTIONS)
  with pytest.raises(SourceError, match="Did you mean 'jsonl'"):
    problems_of(f"json:{path}", FIELDS, **OPTIONS)


def test_hugging_face(tmp_path):
  datasets = pytest.importorskip("datasets")
  datasets.Dataset.from_list([row | {"number": 5} for row in ROWS]).save_to_disk(str(tmp_path / "rows"))
  check_rows(problems_of(f"hf:{tmp_path / 'rows'}", FIELDS, **OPTIONS))
  numbers = problems_of(
    f"hf:{tmp_path / 'rows'}", {"prompt": "question", "reference": "number"}, verifier={"kind": "numeric"}
  )
  assert [one.reference for one in numbers] == ["5", "5"]
  with pytest.raises(SourceError, match="cannot be opened"):
    problems_of(f"hf:{tmp_path / 'rows'}/nothing", FIELDS, **OPTIONS)


def test_tensorflow_datasets(tmp_path, monkeypatch):
  rows = [{key: value.encode() for key, value in row.items()} for row in ROWS]  # text as TFDS has it
  monkeypatch.setattr("qwen3_jax.data.sources.TensorflowDatasets._open", lambda self: rows)
  check_rows(problems_of("tfds:gsm8k:train@/data", FIELDS, **OPTIONS))
