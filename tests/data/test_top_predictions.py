"""A teacher's predictions beside documents: the format, alignment in batches, values, what storing them loses."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_corpora import write_corpus

from qwen3_jax.curation.teacher_predictions import TeacherPredictions
from qwen3_jax.data.pipeline import train_batches, validation_batches
from qwen3_jax.data.prepare import prepare
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.records import (
  DataError,
  Predictions,
  ShardWriter,
  decode_predictions,
  decode_record,
  encode_record,
  read_manifest,
  shard_path,
)
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.sharding import make_mesh
from tests.rollout.conftest import compilations, tokenizer  # noqa: F401

# The format


def predictions(rows: int, k: int, seed: int, ids: int = 2**16) -> Predictions:
  """Different ones, whose log-probabilities float16 holds exactly."""
  rng = np.random.default_rng(seed)
  log_probabilities = -np.sort(rng.integers(0, 200, (rows, k)), axis=1) / np.float32(16)
  return Predictions(rng.integers(0, ids, (rows, k)).astype(np.int32), log_probabilities.astype(np.float32))


def spread(count: int, mask: list[bool] | None, found: Predictions, k: int) -> list[list[tuple[int, float]]]:
  """Of each token its pairs, token by token."""
  rows = iter(zip(found.ids.tolist(), found.log_probabilities.tolist()))
  result = []
  for i in range(count):
    pairs = [(-1, 0.0)] * k
    if i > 0 and (mask is None or mask[i]):
      stored = list(zip(*next(rows)))[:k]
      pairs[: len(stored)] = stored
    result.append(pairs)
  assert next(rows, None) is None
  return result


@settings(deadline=None, max_examples=150)
@given(
  st.lists(st.integers(0, 2**16 - 1), max_size=40), st.integers(1, 4), st.sampled_from([2**16, 2**31 - 1]), st.data()
)
def test_predictions_survive_encoding(tokens, k, ids, data):
  mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
  rows = max(len(tokens) - 1, 0) if mask is None else sum(mask[1:])
  found = predictions(rows, k, len(tokens), ids)
  record = encode_record(np.asarray(tokens, np.int64), mask, found)
  plain = encode_record(np.asarray(tokens, np.int64), mask)
  start, length = data.draw(st.integers(0, len(tokens) + 9)), data.draw(st.integers(0, 50))
  asked = data.draw(st.integers(1, 6))
  expected = spread(len(tokens), mask, found, asked)
  for part, arguments in ((slice(None), ()), (slice(start, start + length), (start, length))):
    decoded = decode_predictions(record, asked, *arguments)
    assert decoded.ids.dtype == np.int32 and decoded.log_probabilities.dtype == np.float32
    pairs = [list(zip(*row)) for row in zip(decoded.ids.tolist(), decoded.log_probabilities.tolist())]
    assert pairs == expected[part]
    # The rest of the record reads as it does without them; one without them has none.
    with_them, without = decode_record(record, *arguments), decode_record(plain, *arguments)
    assert with_them[0].tolist() == without[0].tolist() and with_them[2] == without[2]
    assert (with_them[1] is None) == (mask is None) and np.array_equal(with_them[1], without[1])
  assert decode_predictions(plain, asked) is None


def test_layout_is_fixed():
  """Tokens 1, 258, 3; the mask covers the last two, and the first, which nothing predicts; k = 2."""
  found = Predictions(np.asarray([[258, 7], [3, 1]]), np.asarray([[-0.5, -1.0], [0.0, -2.0]], np.float32))
  record = encode_record(np.asarray([1, 258, 3]), [True, True, True], found)
  parts = ["01", "0f", "03000000", "010002010300", "07", "0200", "0201070003000100", "00b800bc000000c0"]
  assert record.hex() == "".join(parts)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.data())
def test_a_damaged_record_is_refused(count, k, data):
  mask = data.draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count))
  rows = count - 1 if mask is None else sum(mask[1:])
  record = encode_record(np.arange(count), mask, predictions(rows, k, count))
  kept = data.draw(st.integers(0, len(record) - 1))
  for damaged in (record[:kept], record + b"\0"):
    for decode in (decode_record, lambda record: decode_predictions(record, k)):
      with pytest.raises(DataError, match="record of"):
        decode(damaged)
  if mask is not None and rows:  # a bit of the mask that is lost
    i = 1 + mask[1:].index(True)
    damaged = bytearray(record)
    damaged[6 + 2 * count + i // 8] ^= 1 << i % 8
    with pytest.raises(DataError, match="record of"):
      decode_predictions(bytes(damaged), k)


@pytest.mark.parametrize("value", [0x3C00, 0x7E00, 0xFC00])  # 1, not a number, minus infinity
def test_values_that_are_no_log_probabilities(value):
  record = encode_record(np.arange(2), None, predictions(1, 1, 0))
  with pytest.raises(DataError, match="log-probabilities that are none"):
    decode_predictions(record[:-2] + value.to_bytes(2, "little"), 1)


@pytest.mark.parametrize(
  "ids, log_probabilities, message",
  [
    ([[1, 2]], [[-1.0, -2.0]], r"expected \(2, k\)"),
    ([[1], [2]], [[-1.0, -2.0], [-1.0, -2.0]], r"expected \(2, k\)"),
    ([[1], [-1]], [[-1.0], [-1.0]], "ids from -1"),
    ([[1], [2]], [[-1.0], [0.5]], "outside of"),
    ([[1], [2]], [[-1.0], [float("nan")]], "outside of"),
    ([[1], [2]], [[-1.0], [-1e5]], "outside of"),
    (np.zeros((2, 0)), np.zeros((2, 0)), "k from 1"),
  ],
)
def test_what_cannot_be_stored(ids, log_probabilities, message):
  with pytest.raises(DataError, match=message):
    encode_record(np.arange(3), None, Predictions(np.asarray(ids), np.asarray(log_probabilities, np.float32)))


# Alignment


@dataclasses.dataclass
class Document:
  tokens: np.ndarray
  mask: np.ndarray | None
  found: Predictions | None


def documents_with(k: int, count: int, first_token: int, seed: int) -> list[Document]:
  """Different tokens everywhere; predictions that tell their place. Some have no mask, some no predictions."""
  rng = np.random.default_rng(seed)
  documents = []
  for i, length in enumerate(np.maximum(rng.exponential(25, count).astype(int), 1)):
    tokens = np.arange(first_token, first_token + length)
    first_token += length
    mask = None if i % 3 == 0 else rng.random(length) < 0.6
    covered = np.ones(length, bool) if mask is None else mask.copy()
    covered[0] = False
    ids = 7 * tokens[covered, None] + np.arange(k)
    log_probabilities = -((tokens[covered, None] + 3 * np.arange(k)) % 512 / np.float32(64))
    found = None if k == 0 or i % 7 == 6 else Predictions(ids, log_probabilities.astype(np.float32))
    documents.append(Document(tokens, mask, found))
  return documents


def write(folder, documents: list[Document], k: int, shards: int = 2):
  """As `write_corpus`, with predictions; the same documents for validation."""
  write_corpus(folder, [], **({"top_k": k} if k else {}))
  tokens = sum(len(document.tokens) for document in documents)
  manifest = json.loads((folder / "manifest.json").read_text())
  for split in ("train", "validation"):
    for shard, part in enumerate(np.array_split(np.arange(len(documents)), shards)):
      with ShardWriter(shard_path(folder, split, shard)) as writer:
        for document in (documents[i] for i in part):
          writer.add(document.tokens, "web", "en", document.mask, document.found)
    manifest["splits"][split] = {"shards": shards, "documents": len(documents), "tokens": tokens}
  (folder / "manifest.json").write_text(json.dumps(manifest))
  return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
  """Of 3 predictions for a token, of 2, and of none: folders, and what is known of the token after each."""
  folder, known, folders = tmp_path_factory.mktemp("top"), {}, {}
  for number, (name, k) in enumerate((("three", 3), ("two", 2), ("none", 0))):
    documents = documents_with(k, 80, 10**5 * (number + 1), number)
    folders[name] = write(folder / name, documents, k)
    for document in documents:
      if document.found is not None:
        pairs = spread(
          len(document.tokens), None if document.mask is None else document.mask.tolist(), document.found, 3
        )
        known |= zip(document.tokens.tolist(), pairs)
  return folders, known


def check(batch, known, k: int) -> int:
  """Every place against what is known of its target, one by one -> how many have predictions."""
  seen = 0
  for b, t in np.ndindex(batch.shape):
    pairs = list(zip(batch.top.ids[b, t].tolist(), batch.top.log_probabilities[b, t].tolist()))
    expected = [(-1, 0.0)] * 3
    # A target of 0 is none: tokens of these documents begin later.
    if batch.targets[b, t]:
      assert batch.targets[b, t] == batch.tokens[b, t] + 1
      expected = known.get(int(batch.targets[b, t]), expected)
    assert pairs == expected[:k], (b, t)
    assert pairs[0][0] < 0 or batch.loss_weights[b, t] == 1
    seen += pairs[0][0] >= 0
  return seen


@pytest.mark.parametrize("window", [16, 64])
@pytest.mark.parametrize("k", [None, 3, 1])
def test_rows_and_cuts_stay_aligned(corpora, window, k):
  """Rows of several documents, documents of several rows, corpora of different numbers, and of none."""
  folders, known = corpora
  mixture = {name: (PreparedCorpus.open(folder), 1.0) for name, folder in folders.items()}
  options = {"sequence_length": window, "top_k": k}
  iterator = train_batches(mixture, batch_size=8, seed=0, **options)
  batches = [next(iterator) for _ in range(24)]
  iterator.close()
  width = 3 if k is None else k
  assert {batch.top.ids.shape for batch in batches} == {(8, window, width)}
  assert all(batch.top.ids.dtype == np.int32 and batch.top.log_probabilities.dtype == np.float32 for batch in batches)
  seen = sum(check(batch, known, width) for batch in batches)
  weights = sum(batch.loss_weights.sum() for batch in batches)
  assert 0.3 * weights < seen < 0.7 * weights
  opened = {name: PreparedCorpus.open(folder, "validation") for name, folder in folders.items()}
  (held_out,) = validation_batches(opened, batch_size=8, num_batches=100, **options).values()
  there = sum(pairs[0][0] >= 0 for pairs in known.values())
  assert sum(check(batch, known, width) for batch in held_out) == there


def test_without_predictions(corpora):
  """Where no corpus stores any, and where none are asked for: no arrays, and the same batches."""
  folders, _ = corpora
  options = {"sequence_length": 32, "batch_size": 4}

  def first(top_k, *names):
    iterator = train_batches({n: (PreparedCorpus.open(folders[n]), 1.0) for n in names}, seed=3, top_k=top_k, **options)
    found = next(iterator)
    iterator.close()
    return found

  assert first(None, "none").top is None
  with_them, without = first(None, "three", "two"), first(0, "three", "two")
  assert without.top is None and with_them.top is not None
  for name in ("tokens", "targets", "loss_weights", "positions", "segment_ids"):
    assert np.array_equal(getattr(with_them, name), getattr(without, name))
  with pytest.raises(DataError, match=r"top_k: 4 .* at most 3 \(none 0, three 3\)"):
    first(4, "none", "three")
  held_out = validation_batches({"none": PreparedCorpus.open(folders["none"], "validation")}, num_batches=1, **options)
  assert held_out["web"][0].top is None


def test_a_damaged_manifest(corpora, tmp_path):
  folder = write(tmp_path / "corpus", documents_with(1, 3, 10, 0), 1)
  manifest = json.loads((folder / "manifest.json").read_text())
  (folder / "manifest.json").write_text(json.dumps(manifest | {"top_k": "many"}))
  with pytest.raises(DataError, match="top_k is 'many'"):
    PreparedCorpus.open(folder)


# Values


@pytest.fixture(scope="module")
def model(golden):
  """512 ids, a context of 256 tokens."""
  return from_parameters(*load_parameters(golden / "dense", "float32"))


def exact(logits: np.ndarray) -> np.ndarray:
  logits = logits.astype(np.float64)
  return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def check_values(found: Predictions, log_probabilities: np.ndarray, stored: bool, tolerance: float = 2e-5) -> None:
  """Against all log-probabilities [n, V] in float64: `found` are the largest, up to rounding."""
  k = found.ids.shape[1]
  at_ids = np.take_along_axis(log_probabilities, found.ids.astype(np.int64), axis=1)
  largest = -np.sort(-log_probabilities, axis=1)[:, :k]
  np.testing.assert_allclose(at_ids, largest, atol=2 * tolerance)  # no other token is more likely
  assert all(len(set(row)) == k for row in found.ids.tolist())
  error = np.abs(found.log_probabilities - at_ids)
  bound = (np.abs(at_ids) * 2.0**-11 + 2.0**-25 if stored else 0.0) + tolerance
  assert (error <= bound).all()
  if stored:
    assert error.max() > tolerance  # it is float16, and no more


@pytest.mark.parametrize("name", ["dense", "dense_tied_yarn", "moe"])
def test_predictions_are_those_of_the_reference_implementation(golden, name):
  """From the logits that transformers computes for the same checkpoint."""
  values = np.load(golden / name / "golden.npz")
  row = int(np.argmax(values["attention_mask"].sum(axis=1)))
  tokens, expected = values["input_ids"][row], exact(values["logits"][row])
  mask = np.arange(48) % 3 > 0
  predict = TeacherPredictions(from_parameters(*load_parameters(golden / name, "float32")), 512, 5, name)
  (found,) = predict([(tokens, mask)])
  places = np.flatnonzero(mask) - 1
  check_values(found.predictions, expected[places], stored=False, tolerance=1e-4)
  others = 1 - np.sort(np.exp(expected[places]), axis=1)[:, -5:].sum(axis=1)
  np.testing.assert_allclose(found.outside, others, atol=1e-4)


def test_any_batch_gives_the_same(model, golden, compilations):  # noqa: F811
  """Alone or together, padded or not, on a mesh; few programs. And the vocabulary may be smaller than the model's."""
  rng = np.random.default_rng(0)
  mask_of = lambda n: None if n == 33 else rng.random(n) < 0.5
  documents = [(rng.integers(0, 512, n), mask_of(n)) for n in (2, 20, 33, 31, 257, 250)]
  predict = TeacherPredictions(model, 512, 4, "", batch_tokens=64)
  together = predict([*documents, (rng.integers(0, 512, 258), None), (np.asarray([3]), None)])
  assert together[6] is None  # longer than the context
  assert together[7].predictions.ids.shape == (0, 4)  # nothing to predict
  before = compilations.count
  alone = [predict([document])[0] for document in documents]
  assert compilations.count == before > 0
  meshed = from_parameters(
    *load_parameters(golden / "dense", "float32", make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
  )
  on_mesh = TeacherPredictions(meshed, 512, 4, "", batch_tokens=64)(documents[:3])
  for one, others in ((alone, together), (on_mesh, together)):
    for a, b in zip(one, others):
      assert a.predictions.ids.tolist() == b.predictions.ids.tolist()
      np.testing.assert_allclose(a.predictions.log_probabilities, b.predictions.log_probabilities, atol=2e-5)
      np.testing.assert_allclose(a.outside, b.outside, atol=2e-5)
  logits = np.asarray(model(jnp.asarray(documents[1][0][None])).logits[0])
  (small,) = TeacherPredictions(model, 300, 4, "")([(documents[1][0], None)])
  check_values(small.predictions, exact(logits[:-1, :300]), stored=False)
  with pytest.raises(ValueError, match="top_k=513"):
    TeacherPredictions(model, 512, 513, "")


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
  """Conversations, two of them too long for the model."""
  file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
  words = "import return class value index error print range".split()
  rng = np.random.default_rng(0)
  with open(file, "w") as out:
    for i in range(40):
      say = lambda n: " ".join(rng.choice(words, n))
      answer = {"role": "assistant", "reasoning_content": say(3) if i % 2 else "", "content": say(200 if i < 2 else 4)}
      row = {"domain": f"d{i % 3}", "messages": [{"role": "user", "content": f"{say(3)} {i}"}, answer]}
      out.write(json.dumps(row) + "\n")
  return file


def test_stored_beside_conversations(chat, model, tokenizer, tmp_path):  # noqa: F811
  """What is read back is what the model predicts, to the rounding of float16, where the loss mask covers; and the
  manifest says what is lost."""
  predict = TeacherPredictions(model, tokenizer.vocab_size, 6, "golden")
  options = {"validation_fraction": 0.2, "progress": False}
  manifest = prepare(f"chat:{chat}", tmp_path / "top", tokenizer, predictor=predict, num_shards=3, **options)
  plain = prepare(f"chat:{chat}", tmp_path / "plain", tokenizer, workers=1, **options)
  assert (manifest["teacher"], manifest["top_k"], plain.get("top_k")) == ("golden", 6, None)
  assert manifest["splits"]["train"]["shards"] == 3
  same = ("documents", "tokens", "tokens_per_domain", "tokenizer")
  assert {key: manifest[key] for key in same} == {key: plain[key] for key in same}
  forward = jax.jit(lambda tokens: model(tokens).logits)
  outside, rounding, without, tokens_seen = [], [], 0, set()
  for split in ("train", "validation"):
    corpus = PreparedCorpus.open(tmp_path / "top", split)
    assert len(corpus) and corpus.top_k == 6
    for i in range(len(corpus)):
      tokens, mask, found = corpus.read_with_predictions(i, 0, 10**6, 6)
      tokens_seen.add(tuple(tokens))
      if len(tokens) > 257:
        assert found is None
        without += 1
        continue
      padded = np.zeros((1, 256), np.int32)
      padded[0, : len(tokens) - 1] = tokens[:-1]
      logits = exact(np.asarray(forward(padded)[0, : len(tokens) - 1]))
      assert ((found.ids >= 0) == mask[:, None]).all() and not mask[0] and mask.any()
      assert (found.log_probabilities[~mask] == 0).all()
      covered = mask[1:]
      check_values(Predictions(*(array[mask] for array in found)), logits[covered], stored=True)
      top = -np.sort(-logits[covered], axis=1)[:, :6]
      outside += (1 - np.exp(top).sum(axis=1)).tolist()
      rounding.append(np.abs(top - found.log_probabilities[mask]).max())
      assert (found.log_probabilities[mask] == found.log_probabilities[mask].astype(np.float16)).all()
  train, held_out = (PreparedCorpus.open(tmp_path / "plain", split) for split in ("train", "validation"))
  assert tokens_seen == {tuple(corpus.tokens(i)) for corpus in (train, held_out) for i in range(len(corpus))}
  error = manifest["storage_error"]
  assert error["tokens"] == len(outside) and error["documents_without"] == without == 2
  assert error["outside_mean"] == pytest.approx(np.mean(outside), abs=1e-5) and np.mean(outside) > 0.1
  assert error["outside_max"] == pytest.approx(np.max(outside), abs=1e-5)
  assert error["rounding_max"] == pytest.approx(max(rounding), abs=2e-5)
  assert 0 < error["rounding_max"] < -np.log(1 / 512) * 2.0**-11 * 2


def files(folder) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_preparing_goes_on_after_a_failure(chat, model, tokenizer, tmp_path):  # noqa: F811
  """At every shard, to the same files, without predicting again what is there; and refuses another teacher."""
  asked = []

  @dataclasses.dataclass
  class Fails:
    """Predicts, but not the `after`-th time."""

    after: int
    name: str = "golden"
    top_k: int = 3

    def __call__(self, documents):
      self.after -= 1
      if self.after < 0:
        raise KeyboardInterrupt
      asked.append(len(documents))
      return TeacherPredictions(model, 512, 3, "golden")(documents)

  make = lambda folder, predictor: prepare(
    f"chat:{chat}", folder, tokenizer, predictor=predictor, num_shards=4, validation_fraction=0.2, progress=False
  )
  whole = make(tmp_path / "whole", Fails(10))
  assert asked == [10] * 4
  for _ in range(3):
    with pytest.raises(KeyboardInterrupt):
      make(tmp_path / "cut", Fails(1))
  assert make(tmp_path / "cut", Fails(1)) == whole == read_manifest(tmp_path / "cut")
  assert make(tmp_path / "cut", Fails(0)) == whole
  assert asked == [10] * 8
  assert files(tmp_path / "cut") == files(tmp_path / "whole")
  with pytest.raises(DataError, match="teacher='golden', not 'other'"):
    make(tmp_path / "cut", Fails(0, name="other"))
  with pytest.raises(DataError, match="top_k=3, not 4"):
    make(tmp_path / "cut", Fails(0, top_k=4))
