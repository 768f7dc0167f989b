"""Answers, whether they are right, and pass@k against the definition."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.evaluation.answers import extract_answer, normalise, same_answer
from qwen3_jax.evaluation.exact_match import ExactMatch
from qwen3_jax.evaluation.pass_at_k import mean_pass_at_k, pass_at_k
from qwen3_jax.evaluation.records import read_records
from qwen3_jax.rollout.generate import complete, generate


def test_pass_at_k_counts_subsets():
  for n in range(1, 7):
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
      subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
      assert pass_at_k(n, right, k) == pytest.approx(np.mean([any(subset) for subset in subsets]), abs=1e-12)
  assert pass_at_k(1000, 1, 64) == pytest.approx(0.064)
  assert pass_at_k(10**6, 10**5, 10) == pytest.approx(1 - 0.9**10, abs=1e-5)  # where C(n, k) fits no float
  assert mean_pass_at_k(4, [0, 1, 4], 2) == pytest.approx((0 + 1 / 2 + 1) / 3)
  for bad in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)):
    with pytest.raises(ValueError, match="pass_at_k"):
      pass_at_k(*bad)


@pytest.mark.parametrize(
  ("response", "answer"),
  [
    (r"so \boxed{1} or rather \boxed{\frac{1}{2}}.", "0.5"),
    (r"\boxed{x^{2}+1}", "x^{2}+1"),
    (r"\boxed{\{1, 2\}}", r"\{1,2\}"),
    (r"\boxed{5}, that is \boxed{never closed 6", "5"),
    (r"\boxed{2\frac{1}{2}}", "2.5"),
    (r"\boxed{\$1{,}234}", "1234"),
    (r"\boxed{50\%}", "50%"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{\text{Paris}}", "Paris"),
    (r"\boxed{(1, 2)}", "(1,2)"),
    ("3 and 4 make 7", "7"),
    ("so it is 10-7", "7"),
    ("To answer the question, add 3 and 4: 7", "7"),
    ("The answer is 1,234.", "1234"),
    ("The answer is 8. No, the answer is 9. This is because 4 + 5 = 9, not 8.", "9"),
    ("The answer is 9 because 4 + 5 = 9", "9"),
    ("The answer is **7**.", "7"),
    ("**Answer:** \n7", "7"),
    ("Answer: $12$", "12"),
    ("The answer is (B).", "B"),
    ("It is -3.50", "-3.5"),
    ("The answer is \N{MINUS SIGN}3", "-3"),
    ("The final answer is Paris.", "paris"),
    ("The answer is Dr. Who.", "Dr. Who"),
  ],
)
def test_answers(response, answer):
  assert same_answer(extract_answer(response), answer)
  assert not same_answer(extract_answer(response), answer + "1")


def test_no_answer():
  assert extract_answer("I do not know") == ""
  assert extract_answer(r"\boxed{never closed 5") == "5"
  assert not same_answer("", "") and not same_answer("$", "{}")


def test_boxes():
  for response, answer in (
    (r"\boxed{1} or \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}} \boxed{3", r"\frac{1}{2}"),
    (r"\boxed{a \boxed{b} c}", "b"),
    (r"} { \boxed {\{1\}}", r"\{1\}"),
    (r"\boxed{\} }", r"\}"),
    (r"\boxedfor{4} 5", "5"),
  ):
    assert extract_answer(response) == answer, response


def test_a_response_that_never_ends_anything_is_read_once():
  """Each of these would take hours if it were read again from every opening."""
  n = 100_000
  assert extract_answer("\\boxed{" * n + "5") == "5"
  assert extract_answer("{" * n + "\\boxed{" * n + "7}" + "}{" * n) == "7"
  assert extract_answer("the answer is " * n + "8") == "8"


@pytest.mark.parametrize(
  ("a", "b"), [("3 4", "34"), (r"2\frac{1}{2}", "21/2"), ("1/0", "0"), ("x", "y"), ("new york", "newyork"), ("-1", "1")]
)
def test_different_answers(a, b):
  assert not same_answer(a, b) and normalise(a)


@pytest.fixture
def file(tmp_path):
  problems = [{"prompt": "1+1", "answer": 2}, {"messages": [{"role": "user", "content": "2+2"}], "answer": "4"}]
  path = tmp_path / "problems.jsonl"
  path.write_text("\n".join(map(json.dumps, problems)))
  return path


def test_exact_match_asks_the_model(model, tokenizer, file):
  """The rows are what `generate` answers, however many slots there are."""
  options = {"max_new_tokens": 5, "seed": 3, "temperature": 1.0}
  found = ExactMatch(file, samples=2, enable_thinking=False, options=options).run(model, tokenizer)
  asked = [[{"role": "user", "content": text}] for text in ("1+1", "2+2")]
  expected = generate(model, tokenizer, asked, enable_thinking=False, num_samples=2, **options)
  assert [row["responses"] for row in found.rows] == [[sample.response for sample in group] for group in expected]
  assert len({response for row in found.rows for response in row["responses"]}) == 4
  assert found.metrics["problems"] == 2 and found.metrics["tokens"] > 1
  one_slot = ExactMatch(file, samples=2, enable_thinking=False, options=options, slots=1).run(model, tokenizer)
  assert one_slot == found
  assert len(ExactMatch(file, limit=1).problems()) == 1


def test_metrics_of_answers(model, tokenizer, file):
  """A random model is wrong, so answers are put in its mouth."""
  answers = iter(["2", "3", "2", "1", "4", "4", "4", "4"])
  asked = {}

  def scripted(model, tokenizer, prompts, num_samples, settings, **options):
    asked.update(options, prompts=prompts, slots=settings.slots, max_length=settings.max_length)
    groups = complete(model, tokenizer, [[1]] * len(prompts), num_samples=num_samples, max_new_tokens=1)
    ends = itertools.cycle(["stop", "length"])
    say = lambda sample: dataclasses.replace(
      sample, response=f"The answer is {next(answers)}", finish_reason=next(ends), token_ids=[0] * 10
    )
    return [[say(sample) for sample in group] for group in groups]

  options = {"max_new_tokens": 5, "seed": 0, "thinking_budget": 20}
  evaluator = ExactMatch(file, samples=4, ks=(1, 2), options=options, slots=3, generate=scripted)
  found = evaluator.run(model, tokenizer)
  assert found.metrics == pytest.approx(
    {"exact_match": 0.75, "pass@1": 0.75, "pass@2": (5 / 6 + 1) / 2, "tokens": 10, "finished": 0.5, "problems": 2}
  )
  assert [row["right"] for row in found.rows] == [2, 4]
  assert found.rows[0]["found"] == ["2", "3", "2", "1"]
  assert asked["slots"] == 3 and asked["max_length"] == 128 and asked["seed"] == 0
  messages = [{"role": "user", "content": "1+1"}]
  assert asked["prompts"][0] == encode_conversation(tokenizer, messages, add_generation_prompt=True).ids


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"prompt": "x", "answer": 1}\n{"prompt": ', "line 2: not JSON"),
    ('{"prompt": "x"}', "line 1: no field 'answer'; it has prompt"),
    ('\n{"answer": 1}', "line 2: no field 'prompt' or 'messages'"),
    ('{"prompt": 1, "answer": 1}', "line 1: prompt: expected str, found int"),
    ('{"prompt": "x", "answer": ["1"]}', "line 1: answer: expected str or int or float, found list"),
    ('{"prompt": "x", "answer": " "}', "line 1: answer: ' ' is empty"),
    ('{"messages": [], "answer": 1}', "line 1: messages: expected a non-empty list"),
    ('{"messages": [{"role": "robot", "content": ""}], "answer": 1}', r"line 1: messages\[0\].role is 'robot'"),
    (json.dumps({"prompt": "x " * 400, "answer": 1}), r"line 1: a prompt of \d+ tokens leaves no room in a context"),
    ("[1]", "line 1: expected an object, found list"),
    ("", "no records"),
  ],
)
def test_malformed_problems(model, tokenizer, tmp_path, text, message):
  file = tmp_path / "problems.jsonl"
  file.write_text(text)
  with pytest.raises(ValueError, match=f"problems.jsonl(, |: ){message}"):
    ExactMatch(file).run(model, tokenizer)


def test_options_that_cannot_be(file):
  with pytest.raises(ValueError, match="pass@8 needs as many samples"):
    ExactMatch(file, samples=4, ks=(8,))
  with pytest.raises(ValueError, match="samples=0"):
    ExactMatch(file, samples=0)
  for ks in ((), (0,)):
    with pytest.raises(ValueError, match="ks="):
      ExactMatch(file, ks=ks)


def test_records_end_at_line_feeds_alone(tmp_path):
  """JSON may hold U+2028 and U+0085 as they are."""
  file = tmp_path / "records.jsonl"
  file.write_text('\ufeff{"text": "a\u2028b"}\r\n{"text": "c\u0085d"}\n', encoding="utf-8")
  records = read_records(file, lambda record: record["text"])
  assert [(str(line), text) for line, text in records] == [
    (f"{file}, line 1", "a\u2028b"),
    (f"{file}, line 2", "c\u0085d"),
  ]
  assert len(read_records(file, dict, limit=1)) == 1
