"""Perplexity against the loss of the training code, and its windows against slow forms."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_eval.utils import get_rolling_token_windows

from qwen3_jax.batch import Batch
from qwen3_jax.evaluation.perplexity import Perplexity, rolling
from qwen3_jax.objectives.next_token import next_token

TEXTS = ["def add(a, b):\n  return a + b\n", "import os\n" * 8, "class Error(Exception): pass"]


def training_loss(model, documents):
  """Sum and mean of the loss of the tokens after each document's first, by the objective of pre-training."""
  T = max(map(len, documents))
  row = lambda values, dtype: jnp.asarray([[*v, *[0] * (T - len(v))] for v in values], dtype)
  batch = Batch(
    tokens=row([d[:-1] for d in documents], jnp.int32),
    targets=row([d[1:] for d in documents], jnp.int32),
    loss_weights=row([[1.0] * (len(d) - 1) for d in documents], jnp.float32),
    positions=row([range(len(d) - 1) for d in documents], jnp.int32),
    segment_ids=row([[1] * (len(d) - 1) for d in documents], jnp.int32),
  )
  output = next_token()(model, batch, jax.random.PRNGKey(0))
  return float(output.loss_sum), float(output.loss_sum / output.weight)


def test_perplexity_is_the_loss_of_the_training_code(model, tokenizer, tmp_path):
  file = tmp_path / "texts.jsonl"
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
  evaluation = Perplexity(file).run(model, tokenizer)
  documents = [[tokenizer.eos_id, *tokenizer.encode(text)] for text in TEXTS]
  total, loss = training_loss(model, documents)
  assert loss > 1
  assert evaluation.metrics["loss"] == pytest.approx(loss, abs=1e-5)
  assert evaluation.metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
  size = sum(len(text.encode()) for text in TEXTS)
  assert evaluation.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
  tokens = [len(d) - 1 for d in documents]
  assert [row["tokens"] for row in evaluation.rows] == tokens and evaluation.metrics["tokens"] == sum(tokens)
  assert np.average([row["loss"] for row in evaluation.rows], weights=tokens) == pytest.approx(loss, abs=1e-5)


def test_a_text_file_is_one_text(model, tokenizer, tmp_path):
  file = tmp_path / "text.txt"
  file.write_text("x = 'é'\n\u2028<|im_end|>")
  evaluation = Perplexity(file).run(model, tokenizer)
  ids = tokenizer.encode(file.read_text(), allow_special=False)
  total, loss = training_loss(model, [[tokenizer.eos_id, *ids]])
  assert evaluation.metrics["loss"] == pytest.approx(loss, abs=1e-5)
  assert evaluation.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / len(file.read_bytes()), rel=1e-5)


def slow_rolling(reference, document, start, window, stride):
  """Token by token: in which window the model sees each."""
  ids, end = [start, *document], min(window, len(document))
  seen = {}  # (begin, end) of a window -> log-probabilities in it
  total = 0.0
  for place in range(1, len(ids)):
    if place > end:
      end = min(end + stride, len(document))
    begin = max(end - window, 0)
    if (begin, end) not in seen:
      seen[begin, end] = reference(ids[begin : end + 1])[0]
    total += seen[begin, end][place - begin - 1]
  return total


@pytest.mark.parametrize(("window", "stride"), [(16, 0), (16, 5), (16, 1), (15, 15)])
def test_long_documents_are_read_in_windows(model, reference, window, stride):
  rng = np.random.default_rng(0)
  documents = [rng.integers(0, 512, n).tolist() for n in (45, 16, 17, 3)]
  found = rolling(model, documents, 7, window, stride, batch_tokens=256)
  for document, total in zip(documents, found):
    assert total == pytest.approx(slow_rolling(reference, document, 7, window, stride or window), abs=1e-3)
    whole = reference([7, *document])[0].sum()
    assert total == pytest.approx(whole, abs=1e-3) if len(document) <= window else abs(whole - total) > 0.05


def test_windows_are_the_harness_s(model, reference):
  """Also where a document just fills the context, and where it does not."""
  rng = np.random.default_rng(0)
  documents = [rng.integers(0, 512, n).tolist() for n in (255, 256, 257, 300)]
  for document, total in zip(documents, rolling(model, documents, 7)):
    expected = 0.0
    for read, predicted in get_rolling_token_windows(document, 7, max_seq_len=256, context_len=1):
      expected += reference([*read, predicted[-1]])[0][-len(predicted) :].sum()
    assert expected < -1000 and total == pytest.approx(expected, rel=1e-5)


def test_what_has_no_perplexity(model, tokenizer, tmp_path):
  assert rolling(model, [[]], 7) == [0.0]
  for window, stride in ((257, 0), (8, 9), (-1, 0)):
    with pytest.raises(ValueError, match=f"window={window}, "):
      rolling(model, [[1, 2]], 7, window, stride)
  file = tmp_path / "texts.jsonl"
  file.write_text('{"text": ""}')
  with pytest.raises(ValueError, match="the texts are empty"):
    Perplexity(file).run(model, tokenizer)
  file.write_text('{"text": "a"}\n\n{"text": null}')
  with pytest.raises(ValueError, match="line 3: text: expected str, found NoneType"):
    Perplexity(file).texts()
  file.write_bytes(b'{"text": "\xff"}')
  with pytest.raises(ValueError, match=r"texts\.jsonl: not UTF-8 at byte 10"):
    Perplexity(file).texts()
