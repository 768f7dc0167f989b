"""Records, shards and random access to prepared corpora."""

import concurrent.futures
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared_corpora import Document, random_documents, write_corpus

from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.records import (
  DataError,
  ShardWriter,
  decode_record,
  encode_record,
  index_path,
  read_index,
  shard_path,
)

token_lists = st.one_of(
  st.lists(st.integers(0, 2**16 - 1), max_size=40), st.lists(st.integers(0, 2**31 - 1), max_size=40)
)


@given(token_lists, st.data())
def test_records_survive_encoding(tokens, data):
  mask = data.draw(st.none() | st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
  record = encode_record(np.asarray(tokens, np.int64), mask)
  start, length = data.draw(st.integers(0, len(tokens) + 9)), data.draw(st.integers(0, 50))
  for part, arguments in (
    (slice(None), ()),
    (slice(start, None), (start,)),
    (slice(start, start + length), (start, length)),
  ):
    decoded, decoded_mask, count = decode_record(record, *arguments)
    assert count == len(tokens)
    assert decoded.dtype == np.int32 and decoded.tolist() == tokens[part]
    if mask is None:
      assert decoded_mask is None
    else:
      assert decoded_mask.dtype == bool and decoded_mask.tolist() == mask[part]


def test_decoding_a_part_costs_no_more_than_the_part():
  record = encode_record(np.arange(2**21) % 60_000, np.ones(2**21, bool))
  tracemalloc.start()
  tokens, mask, _ = decode_record(record, 2**20, 1000)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(tokens) == len(mask) == 1000 and peak < 100_000


@given(token_lists.filter(len), st.data())
def test_a_record_of_another_length_is_refused(tokens, data):
  record = encode_record(np.asarray(tokens, np.int64))
  kept = data.draw(st.integers(0, len(record) - 1))
  for damaged in (record[:kept], record + b"\0"):
    with pytest.raises(DataError, match="record of"):
      decode_record(damaged)


def test_record_layout_is_fixed():
  assert encode_record(np.asarray([1, 258])).hex() == "01010200000001000201"
  assert encode_record(np.asarray([1, 2**16]), [True, False]).hex() == "010202000000010000000000010001"


def test_other_versions_and_flags_are_refused():
  record = encode_record(np.arange(3))
  for damaged, message in (
    (b"\x02" + record[1:], "format version 2; expected 1"),
    (record[:1] + b"\x81" + record[2:], "unknown flags 0x81"),
    (b"\x01\x00\x01\x00\x00\x00\xff\xff\xff\xff", "above 2"),
  ):
    with pytest.raises(DataError, match=message):
      decode_record(damaged)


@pytest.mark.parametrize(
  "tokens, mask, message",
  [
    ([-1, 2], None, "ids from -1"),
    ([2**31], None, "expected 0 to"),
    ([0.5], None, "float64"),
    ([[1]], None, "one dimension"),
    ([1, 2], [True], "loss_mask: shape"),
  ],
)
def test_tokens_that_cannot_be_stored_are_refused(tokens, mask, message):
  with pytest.raises(DataError, match=message):
    encode_record(np.asarray(tokens), mask)


@pytest.fixture(scope="module")
def documents():
  documents = random_documents(50, 30, seed=0)
  for i, document in enumerate(documents):
    document.domain = ("web", "code", "books")[i % 3] if i < 25 else "algebra"
    document.language = ("sv", "el")[i % 2]
    if i % 4 == 0:
      document.loss_mask = np.arange(len(document.tokens)) % 3 == 0
  return documents


@pytest.fixture
def corpus(tmp_path, documents):
  return write_corpus(tmp_path / "corpus", documents, documents[:3], shards=3)


def test_documents_are_read_back_in_order(corpus, documents):
  opened = PreparedCorpus.open(corpus)
  assert len(opened) == 50 and opened.lengths.dtype == np.int32
  assert opened.tokens_total == sum(len(document.tokens) for document in documents)
  assert opened.domain_names == ["algebra", "books", "code", "web"]
  assert [opened.domain_names[i] for i in opened.domains] == [document.domain for document in documents]
  assert [opened.language_names[i] for i in opened.languages] == [document.language for document in documents]
  for i in np.random.default_rng(0).permutation(50).tolist():
    tokens, mask = opened.read(i)
    assert tokens.dtype == np.int32 and tokens.tolist() == documents[i].tokens.tolist()
    expected = documents[i].loss_mask
    assert mask is None if expected is None else mask.tolist() == expected.tolist()
  assert len(PreparedCorpus.open(corpus, "validation")) == 3


def test_part_of_a_document(corpus, documents):
  opened = PreparedCorpus.open(corpus)
  i = int(np.argmax(opened.lengths))
  whole = documents[i].tokens
  assert opened.tokens(i, 3, 5).tolist() == whole[3:8].tolist()
  assert opened.tokens(i, len(whole) - 2, 9).tolist() == whole[-2:].tolist()
  assert opened.tokens(i, 4).tolist() == whole[4:].tolist()
  masked = next(
    i for i, document in enumerate(documents) if document.loss_mask is not None and len(document.tokens) > 9
  )
  assert opened.read(masked, 2, 5)[1].tolist() == documents[masked].loss_mask[2:7].tolist()
  with pytest.raises(IndexError):
    opened.tokens(50)


def test_threads_read_at_once(corpus, documents):
  opened = PreparedCorpus.open(corpus)
  order = np.random.default_rng(1).integers(0, 50, 2000).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    read = list(threads.map(opened.tokens, order))
  assert all((tokens == documents[i].tokens).all() for i, tokens in zip(order, read))


def test_missing_files_are_named(corpus):
  with pytest.raises(DataError, match=r"nowhere/manifest\.json: missing"):
    PreparedCorpus.open(corpus.parent / "nowhere")
  with pytest.raises(DataError, match="split 'test'; expected one of train, validation"):
    PreparedCorpus.open(corpus, "test")
  shard = shard_path(corpus, "train", 1)
  shard.rename(shard.with_name("elsewhere"))
  with pytest.raises(DataError, match=r"shard-00001\.array_record: missing"):
    PreparedCorpus.open(corpus)
  index_path(shard).unlink()
  with pytest.raises(DataError, match=r"shard-00001\.index\.npz: missing"):
    PreparedCorpus.open(corpus)


def test_a_damaged_manifest_is_named(corpus):
  manifest = corpus / "manifest.json"
  good = json.loads(manifest.read_text())
  for bad, message in (
    ("{", "damaged"),
    ("[]", "format version None; expected 1"),
    (json.dumps({**good, "version": 2}), "format version 2; expected 1"),
    (json.dumps({key: good[key] for key in good if key != "tokenizer"}), "tokenizer is None"),
    (json.dumps({**good, "splits": {"train": {"shards": 1}}}), "splits.train"),
  ):
    manifest.write_text(bad)
    with pytest.raises(DataError, match=rf"manifest\.json: .*{message}"):
      PreparedCorpus.open(corpus)
  good["splits"]["train"]["tokens"] += 1
  manifest.write_text(json.dumps(good))
  with pytest.raises(DataError, match=r"train: 50 documents.*the manifest says 50"):
    PreparedCorpus.open(corpus)


@pytest.mark.parametrize("kept", [0, 10, 0.5, -10])
def test_a_truncated_shard_is_named(corpus, kept):
  shard = shard_path(corpus, "train", 0)
  content = shard.read_bytes()
  shard.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
  opened = PreparedCorpus.open(corpus)
  with pytest.raises(DataError, match=r"shard-00000\.array_record: "):
    for i in range(10):
      opened.tokens(i)


def test_flipped_bytes_never_give_wrong_tokens(corpus, documents):
  shard = shard_path(corpus, "train", 0)
  content = bytearray(shard.read_bytes())
  noticed = 0
  for position in range(0, len(content), max(1, len(content) // 60)):
    damaged = bytearray(content)
    damaged[position] ^= 0xFF
    shard.write_bytes(damaged)
    opened = PreparedCorpus.open(corpus)
    for i in range(17):
      try:
        tokens = opened.tokens(i)
      except DataError as error:
        assert "shard-00000.array_record: " in str(error) and "\n" not in str(error)
        noticed += 1
      else:
        assert tokens.tolist() == documents[i].tokens.tolist()
  assert noticed


def test_a_damaged_index_is_named(corpus):
  index = index_path(shard_path(corpus, "train", 2))
  arrays = dict(np.load(index))
  for content in (b"", b"text", index.read_bytes()[:300]):
    index.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00002\.index\.npz: damaged"):
      PreparedCorpus.open(corpus)
  for change in (
    {"domain": arrays["domain"][:-1]},
    {"domain_names": arrays["domain_names"][:0]},
    {"lengths": -arrays["lengths"]},
  ):
    with open(index, "wb") as file:
      np.savez(file, **{**arrays, **change})
    with pytest.raises(DataError, match=r"shard-00002\.index\.npz: damaged"):
      PreparedCorpus.open(corpus)


def test_an_index_of_other_documents_is_noticed(corpus):
  shard = shard_path(corpus, "train", 0)
  arrays = dict(np.load(index_path(shard)))
  arrays["lengths"][:2] += np.asarray([1, -1], np.int32)
  with open(index_path(shard), "wb") as file:
    np.savez(file, **arrays)
  with pytest.raises(DataError, match=r"shard-00000\.array_record: document 0 has .* its index says"):
    PreparedCorpus.open(corpus).tokens(0)


def test_empty_corpora(tmp_path):
  empty = write_corpus(tmp_path / "empty", [])
  with pytest.raises(DataError, match=r"empty/train: no tokens"):
    PreparedCorpus.open(empty)
  validation = PreparedCorpus.open(empty, "validation")
  assert len(validation) == validation.tokens_total == 0 and validation.domain_names == []


def test_an_interrupted_shard_leaves_nothing(tmp_path):
  shard = shard_path(tmp_path, "train", 0)
  with pytest.raises(KeyboardInterrupt), ShardWriter(shard) as writer:
    writer.add(np.arange(5), "web", "en")
    raise KeyboardInterrupt
  assert os.listdir(shard.parent) == []
  with ShardWriter(shard) as writer:
    writer.add(np.arange(5), "web", "en")
  assert (writer.documents, writer.tokens) == (1, 5)
  with pytest.raises(DataError), ShardWriter(shard) as writer:
    writer.add(np.asarray([-1]), "web", "en")
  assert read_index(shard)["lengths"].tolist() == [5]
  assert len(os.listdir(shard.parent)) == 2


def test_a_killed_writer_leaves_no_complete_shard(tmp_path):
  shard = shard_path(tmp_path, "train", 0)
  program = f"""
    import os, signal, numpy as np
    from qwen3_jax.data.records import ShardWriter
    with ShardWriter({str(shard)!r}) as writer:
      for _ in range(1000):
        writer.add(np.arange(100), "web", "en")
      os.kill(os.getpid(), signal.SIGKILL)
  """
  assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)]).returncode == -signal.SIGKILL
  assert not shard.exists() and not index_path(shard).exists()
  with ShardWriter(shard) as writer:  # over what the killed one left
    writer.add(np.arange(5), "web", "en")
  assert len(os.listdir(shard.parent)) == 2


def test_a_full_disk_is_reported(tmp_path):
  shard = shard_path(tmp_path, "train", 0)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
  try:
    with (
      pytest.raises(DataError, match=r"shard-00000\.array_record: could not be written"),
      ShardWriter(shard) as writer,
    ):
      for i in range(500):
        writer.add(np.random.default_rng(i).integers(0, 2**30, 2000), "web", "en")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)
  assert os.listdir(shard.parent) == []


def test_manifest_keeps_unicode(tmp_path):
  corpus = write_corpus(tmp_path / "corpus", [Document(np.arange(3), "κώδικας", "ελ")], source="jsonl:/δεδομένα")
  opened = PreparedCorpus.open(corpus)
  assert opened.domain_names == ["κώδικας"] and opened.manifest["source"] == "jsonl:/δεδομένα"
