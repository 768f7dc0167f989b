"""Scores, perplexity and pass@k against slow independent forms."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.batch import Batch
from qwen3_jax.evaluation.answers import extract_answer, same_answer
from qwen3_jax.evaluation.exact_match import ExactMatch
from qwen3_jax.evaluation.pass_at_k import pass_at_k
from qwen3_jax.evaluation.perplexity import Perplexity, rolling
from qwen3_jax.evaluation.scoring import score
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.objectives.next_token import next_token
from qwen3_jax.sharding import make_mesh
from tests.rollout.conftest import tokenizer  # noqa: F401


@pytest.fixture(scope="module")
def model(golden):
  return from_parameters(*load_parameters(golden / "dense", "float32"))


def reference(model, tokens):
  """Log-probability of every token after the first, in float64 from the logits of one sequence alone."""
  logits = np.asarray(model(jnp.asarray([tokens], jnp.int32)).logits[0], np.float64)[:-1]
  normaliser = np.log(np.sum(np.exp(logits), axis=-1))
  return logits[np.arange(len(tokens) - 1), tokens[1:]] - normaliser, np.argmax(logits, axis=-1) == tokens[1:]


def test_scores_are_the_model_s(model):
  """Of sequences of many lengths, whatever their company; also where the model would have chosen the tokens."""
  rng = np.random.default_rng(0)
  sequences = [rng.integers(0, 512, n).tolist() for n in (1, 2, 7, 32, 33, 90, 200)]
  for _ in range(3):  # continued greedily
    sequences[2].append(int(np.argmax(model(jnp.asarray([sequences[2]])).logits[0, -1])))
  asked = [0, 1, 5, 31, 10, 89, 3]
  for sequence, count, found in zip(sequences, asked, score(model, sequences, asked)):
    assert len(found.log_probabilities) == len(found.greedy) == count
    if count:
      expected, greedy = reference(model, sequence)
      np.testing.assert_allclose(found.log_probabilities, expected[-count:], atol=2e-5)
      assert found.greedy.tolist() == greedy[-count:].tolist()
  assert score(model, sequences, asked)[2].greedy[-3:].all()
  with pytest.raises(ValueError, match="sequence 0 has 3 tokens; 3 of them"):
    score(model, [[1, 2, 3]], [3])


def test_scores_on_a_mesh(golden, model):
  sequences = np.random.default_rng(0).integers(0, 512, (3, 40)).tolist()
  config, params = load_parameters(golden / "dense", "float32", make_mesh({"fsdp": 4, "tensor": 2}))
  for a, b in zip(score(from_parameters(config, params), sequences, [39] * 3), score(model, sequences, [39] * 3)):
    np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=2e-5)


def test_perplexity_is_the_loss_of_the_training_code(model, tokenizer, tmp_path):  # noqa: F811
  texts = ["def add(a, b):\n  return a + b\n", "import os\n" * 8, "class Error(Exception): pass"]
  file = tmp_path / "texts.jsonl"
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  evaluation = Perplexity(file).run(model, tokenizer)
  documents = [[tokenizer.eos_id, *tokenizer.encode(text)] for text in texts]
  T = max(map(len, documents))
  row = lambda values: np.array([[*v, *[0] * (T - len(v))] for v in values])
  batch = Batch(
    tokens=jnp.asarray(row([d[:-1] for d in documents]), jnp.int32),
    targets=jnp.asarray(row([d[1:] for d in documents]), jnp.int32),
    loss_weights=jnp.asarray(row([[1.0] * (len(d) - 1) for d in documents]), jnp.float32),
    positions=jnp.asarray(row([range(len(d) - 1) for d in documents]), jnp.int32),
    segment_ids=jnp.asarray(row([[1] * (len(d) - 1) for d in documents]), jnp.int32),
  )
  output = next_token()(model, batch, jax.random.PRNGKey(0))
  loss = float(output.loss_sum / output.weight)
  assert loss > 1
  assert evaluation.metrics["loss"] == pytest.approx(loss, abs=1e-5)
  assert evaluation.metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
  size = sum(len(text.encode()) for text in texts)
  assert evaluation.metrics["bits_per_byte"] == pytest.approx(float(output.loss_sum) / math.log(2) / size, rel=1e-5)
  assert [row["tokens"] for row in evaluation.rows] == [len(d) - 1 for d in documents]


def test_long_documents_are_read_in_windows(model):
  """Every token once, after all that its window holds before it."""
  window, document = 16, np.random.default_rng(0).integers(0, 512, 45).tolist()
  ids = [7, *document]
  expected = 0.0
  for place in range(1, len(ids), window - 1):
    end = min(place + window - 1, len(ids))
    piece = ids[max(0, end - window) : end]
    expected += reference(model, piece)[0][-(end - place) :].sum()
  (total,) = rolling(model, [document], 7, window)
  assert total == pytest.approx(expected, abs=1e-3)
  (whole,) = rolling(model, [document], 7)
  assert whole == pytest.approx(reference(model, ids)[0].sum(), abs=1e-3)
  assert abs(whole - total) > 0.1
  assert rolling(model, [[]], 7) == [0.0]


def test_pass_at_k_counts_subsets():
  for n, right in itertools.product(range(1, 7), range(7)):
    for k in range(1, n + 1):
      if right <= n:
        subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(np.mean([any(subset) for subset in subsets]), abs=1e-12)
  assert pass_at_k(1000, 1, 64) == pytest.approx(0.064)
  for bad in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
    with pytest.raises(ValueError, match="pass_at_k"):
      pass_at_k(*bad)


@pytest.mark.parametrize(
  ("response", "answer"),
  [
    (r"so \boxed{1} or rather \boxed{\frac{1}{2}}.", "0.5"),
    (r"\boxed{x^{2}+1}", "x^{2}+1"),
    ("3 and 4 make 7", "7"),
    ("The answer is 1,234.", "1234"),
    ("Answer: $12$", "12"),
    ("It is -3.50", "-3.5"),
    ("The final answer is Paris.", "paris"),
  ],
)
def test_answers(response, answer):
  assert same_answer(extract_answer(response), answer)
  assert not same_answer(extract_answer(response), answer + "1")


def test_no_answer():
  assert extract_answer("I do not know") == ""
  assert extract_answer(r"\boxed{never closed 5") == "5"


def test_exact_match(model, tokenizer, tmp_path, monkeypatch):  # noqa: F811
  """The metrics from the answers; a random model is wrong, so answers are put in its mouth."""
  file = tmp_path / "problems.jsonl"
  problems = [{"prompt": "1+1", "answer": 2}, {"messages": [{"role": "user", "content": "2+2"}], "answer": "4"}]
  file.write_text("\n".join(map(json.dumps, problems)))
  evaluator = ExactMatch(file, samples=4, ks=(1, 2), options={"max_new_tokens": 5, "seed": 0})
  real = evaluator.run(model, tokenizer)
  assert real.metrics["tokens"] > 1 and real.metrics["problems"] == 2
  import dataclasses

  from qwen3_jax.evaluation import exact_match

  original = exact_match.generate
  answers = iter(["2", "3", "2", "1", "4", "4", "4", "4"])
  scripted = lambda *arguments, **options: [
    [dataclasses.replace(sample, response=f"The answer is {next(answers)}") for sample in samples]
    for samples in original(*arguments, **options)
  ]
  monkeypatch.setattr(exact_match, "generate", scripted)
  found = evaluator.run(model, tokenizer)
  assert found.metrics["exact_match"] == found.metrics["pass@1"] == 0.75
  assert found.metrics["pass@2"] == pytest.approx((1 - 1 / 6 + 1) / 2)
  assert [row["right"] for row in found.rows] == [2, 4]
  with pytest.raises(ValueError, match="pass@8 needs"):
    ExactMatch(file, samples=4, ks=(8,)).run(model, tokenizer)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"prompt": "x", "answer": 1}\n{"prompt": ', "line 2: not JSON"),
    ('{"prompt": "x"}', "line 1: no field 'answer'"),
    ("[1]", "line 1: expected an object, found list"),
    ("", "no records"),
  ],
)
def test_malformed_records(model, tokenizer, tmp_path, text, message):  # noqa: F811
  file = tmp_path / "problems.jsonl"
  file.write_text(text)
  with pytest.raises(ValueError, match=message):
    ExactMatch(file).run(model, tokenizer)
