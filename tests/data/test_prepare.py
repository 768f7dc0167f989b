"""Preparation: what is written, counted and refused, and that killed work ends with the same files."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qwen3_jax.data import prepare as module
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.prepare import fingerprint, is_prepared, prepare
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.records import DataError
from qwen3_jax.data.sources import SourceError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
  rng = np.random.default_rng(0)
  words = ["import", "return", "def", "Привет", "世界", "numpy", "é", "\n", "0", "<|endoftext|>"]
  texts = [" ".join(rng.choice(words, rng.integers(1, 400))) + f" {i}" for i in range(400)]
  return [
    {"text": text, "domain": ("code", "web")[i % 2], "language": ("en", "ru", "zh")[i % 3]}
    for i, text in enumerate(texts)
  ]


@pytest.fixture(scope="module")
def source(records, tmp_path_factory) -> str:
  """Twenty files of twenty records."""
  folder = tmp_path_factory.mktemp("raw")
  for i in range(20):
    lines = [json.dumps(record, ensure_ascii=False) for record in records[20 * i : 20 * i + 20]]
    (folder / f"{i:02d}.jsonl").write_text("\n".join(lines))
  return f"jsonl:{folder}"


def files(folder: Path) -> dict[str, bytes]:
  """Everything in a corpus but its lock."""
  found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
  found.pop(".lock")
  return found


def contents(folder: Path, split: str, tokenizer) -> list[tuple[str, str, str]]:
  corpus = PreparedCorpus.open(folder, split)
  texts = []
  for i in range(len(corpus)):
    tokens = corpus.tokens(i).tolist()
    assert tokens[-1] == tokenizer.eos_id and tokenizer.eos_id not in tokens[:-1]
    labels = corpus.domain_names[corpus.domains[i]], corpus.language_names[corpus.languages[i]]
    texts.append((tokenizer.decode(tokens[:-1]), *labels))
  return texts


def test_every_document_is_there_once_and_the_manifest_counts_them(source, records, small, tmp_path):
  manifest = prepare(source, tmp_path / "out", small, validation_fraction=0.2, workers=1, progress=False)
  train, validation = (contents(tmp_path / "out", split, small) for split in ("train", "validation"))
  assert sorted(train + validation) == sorted((r["text"], r["domain"], r["language"]) for r in records)
  assert 40 < len(validation) < 120
  assert is_prepared(tmp_path / "out") and json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
  tokens = [len(small.encode(record["text"], allow_special=False)) + 1 for record in records]
  assert (manifest["documents"], manifest["tokens"]) == (400, sum(tokens))
  assert manifest["bytes"] == sum(len(record["text"].encode()) for record in records)
  for key in ("domain", "language"):
    for name, count in manifest[f"tokens_per_{key}"].items():
      assert count == sum(n for n, record in zip(tokens, records) if record[key] == name)
  assert (manifest["tokenizer"], manifest["vocab_size"]) == (small.fingerprint, small.vocab_size)


def test_the_result_does_not_depend_on_the_number_of_workers(source, small, tmp_path):
  for workers in (1, 3):
    prepare(source, tmp_path / str(workers), small, workers=workers, progress=False)
  assert files(tmp_path / "1") == files(tmp_path / "3")


def test_killed_work_continues_and_ends_with_the_same_files(source, small_path, small, tmp_path):
  prepare(source, tmp_path / "whole", small, workers=1, progress=False)
  killed = tmp_path / "killed"
  command = [sys.executable, "-m", "qwen3_jax.prepare_data", f"--source={source}", f"--tokenizer={small_path}"]
  process = subprocess.Popen(
    [*command, f"--output={killed}", "--workers=2"], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 60
  while not (finished := sorted(killed.glob("summaries/*.json"))) and time.monotonic() < deadline:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stderr.read()  # ends when the workers have, too
  assert finished and not is_prepared(killed)
  with pytest.raises(DataError, match=r"manifest\.json: missing"):
    PreparedCorpus.open(killed)
  # Whatever was under way is half there; and a finished shard is not written again.
  written = {path: path.stat().st_mtime_ns for path in killed.glob("summaries/*.json")}
  (killed / "train/shard-00019.array_record.partial").write_bytes(b"half")
  (killed / "train/shard-00018.array_record").write_bytes(b"no index yet")
  for path in killed.glob("summaries/0001[89].json"):
    path.unlink()
    written.pop(path, None)
  prepare(source, killed, small, workers=1, progress=False)
  assert files(killed) == files(tmp_path / "whole")
  assert all(path.stat().st_mtime_ns == before for path, before in written.items())


def test_finished_work_is_not_done_again(source, small, tmp_path):
  first = prepare(source, tmp_path / "out", small, workers=1, progress=False)
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
  assert prepare(source, tmp_path / "out", small, workers=1, progress=False) == first
  assert before == {path: path.stat().st_mtime_ns for path in before}


def test_half_done_work_on_files_that_have_changed_starts_again(small, tmp_path):
  for name in ("a", "b"):
    (tmp_path / f"{name}.txt").write_text(f"text {name}")
  prepare(f"text:{tmp_path}/*.txt", tmp_path / "out", small, workers=1, validation_fraction=0, progress=False)
  (tmp_path / "out/manifest.json").unlink()
  (tmp_path / "0.txt").write_text("text 0")
  prepare(f"text:{tmp_path}/*.txt", tmp_path / "out", small, workers=1, validation_fraction=0, progress=False)
  assert [text for text, _, _ in contents(tmp_path / "out", "train", small)] == ["text 0", "text a", "text b"]


@pytest.mark.parametrize(
  "labels, expected", [({}, ("text", "und")), ({"domain": "books", "language": "de"}, ("books", "de"))]
)
def test_labels_for_documents_that_carry_none(small, tmp_path, labels, expected):
  (tmp_path / "a.txt").write_text("text")
  options = {"validation_fraction": 0, "workers": 1, "progress": False, **labels}
  prepare(f"text:{tmp_path}/a.txt", tmp_path / "out", small, **options)
  assert contents(tmp_path / "out", "train", small) == [("text", *expected)]


def test_equal_documents_are_in_the_same_split(small, tmp_path):
  for i in range(60):
    (tmp_path / f"{i:02d}.txt").write_text(f"text {i % 20}")
  prepare(f"text:{tmp_path}/*.txt", tmp_path / "out", small, validation_fraction=0.5, workers=1, progress=False)
  train, validation = (contents(tmp_path / "out", split, small) for split in ("train", "validation"))
  assert len(train) + len(validation) == 60 and train and validation
  assert set(train).isdisjoint(validation)


def test_undecodable_bytes_are_counted_and_white_space_is_left_out(small, tmp_path):
  (tmp_path / "a.txt").write_bytes(b"caf\xe9 and \xff")
  (tmp_path / "b.txt").write_bytes(b" \n\t")
  manifest = prepare(
    f"text:{tmp_path}/*.txt", tmp_path / "out", small, validation_fraction=0, workers=1, progress=False
  )
  assert (manifest["documents"], manifest["replaced_characters"]) == (1, 2)
  assert contents(tmp_path / "out", "train", small)[0][0] == "caf\ufffd and \ufffd"


def test_the_limit_bounds_the_text_read_in_every_shard(source, small, tmp_path):
  manifest = prepare(source, tmp_path / "out", small, limit_megabytes=0.1, num_shards=4, workers=1, progress=False)
  assert 0.1e6 <= manifest["bytes"] < 0.12e6  # up to one document more in each shard
  assert manifest["splits"]["train"]["shards"] == 4


def test_a_source_without_text_is_an_error(small, tmp_path):
  (tmp_path / "a.txt").write_text("\n\n")
  for _ in range(2):  # and stays one
    with pytest.raises(SourceError, match="empty, there is no text in it"):
      prepare(f"text:{tmp_path}/a.txt", tmp_path / "out", small, workers=1, progress=False)
  assert not is_prepared(tmp_path / "out")


def test_an_output_that_holds_something_else_is_an_error(source, small, tmp_path):
  prepare(source, tmp_path / "out", small, workers=1, progress=False)
  with pytest.raises(DataError, match="holds a corpus with limit_megabytes=0, not 1; choose another folder"):
    prepare(source, tmp_path / "out", small, limit_megabytes=1, workers=1, progress=False)
  (tmp_path / "other").mkdir()
  (tmp_path / "other/thesis.tex").touch()
  with pytest.raises(DataError, match=r"holds 'thesis\.tex' and no prepared corpus"):
    prepare(source, tmp_path / "other", small, workers=1, progress=False)


def test_a_token_beyond_the_vocabulary_is_an_error(small, tmp_path):
  class Wrong:
    fingerprint, eos_id, vocab_size = "wrong", 1, 100
    encode_batch = small.encode_batch

  (tmp_path / "a.txt").write_text("hello world")
  with pytest.raises(DataError, match=r"a\.txt: token id \d+, the tokenizer's vocabulary is 100"):
    prepare(f"text:{tmp_path}/a.txt", tmp_path / "out", Wrong(), workers=1, progress=False)


def test_an_error_in_a_worker_reaches_the_caller(small, tmp_path):
  for i in range(4):
    (tmp_path / f"{i}.jsonl").write_text('{"text": "good"}\n' if i else '{"txt": "bad"}\n')
  with pytest.raises(SourceError, match=r"0\.jsonl, line at byte 0: no field 'text'"):
    prepare(f"jsonl:{tmp_path}", tmp_path / "out", small, workers=2, progress=False)


def test_the_fingerprint_tells_arguments_apart(small, qwen):
  prints = {
    fingerprint("text:a", small),
    fingerprint("text:b", small),
    fingerprint("text:a", qwen),
    fingerprint("text:a", small, limit_megabytes=1),
    fingerprint("text:a", small, limit_megabytes=2),
  }
  assert len(prints) == 5
  assert fingerprint("text:a", small, a=1, b=2) == fingerprint("text:a", small, b=2, a=1)


def test_the_command_trains_a_tokenizer_and_reports(tmp_path, standard_library):
  for i, text in enumerate(standard_library[:12]):
    (tmp_path / f"{i}.txt").write_text(text)
  command = [sys.executable, "-m", "qwen3_jax.prepare_data", f"--source=text:{tmp_path}/*.txt"]
  command += [f"--tokenizer={tmp_path / 'tok'}", f"--output={tmp_path / 'out'}", "--workers=1"]
  environment = {**os.environ, "COLUMNS": "80"}

  def run(*arguments):
    return subprocess.run([*command, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True)

  missing = run()
  assert missing.returncode == 1 and missing.stderr.strip().splitlines()[-1].startswith("error: no tokenizer at")
  done = run("--train_tokenizer=512", "--domain=books")
  assert done.returncode == 0, done.stderr
  assert "12 documents" in done.stdout and "tokens per domain: books" in done.stdout
  assert done.stderr.startswith(f"Prepared text:{tmp_path}/*.txt: 12 documents, ")
  assert is_prepared(tmp_path / "out")


def test_every_shard_counts_as_progress(small, tmp_path, standard_library, monkeypatch):
  shown = []
  monkeypatch.setattr(module, "task_progress", lambda console: contextlib.nullcontext(lambda *told: shown.append(told)))
  for i, text in enumerate(standard_library[:3]):
    (tmp_path / f"{i}.txt").write_text(text)
  source = f"text:{tmp_path}/*.txt"
  prepare(source, tmp_path / "out", small, workers=1)
  assert shown == [(f"Preparing {source}", done, 3) for done in range(4)]


def test_conversations_keep_their_loss_masks(small, tmp_path):
  thought = {"role": "assistant", "reasoning_content": "two and two", "content": "4"}
  conversations = [
    {"messages": [{"role": "user", "content": "2+2?"}, thought], "domain": "sums"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
  ]
  file = tmp_path / "chat.jsonl"
  file.write_text("".join(json.dumps(record) + "\n" for record in conversations))
  prepare(f"chat:{file}", tmp_path / "out", small, validation_fraction=0.0, workers=1, progress=False)
  corpus = PreparedCorpus.open(tmp_path / "out")
  assert set(corpus.domain_names) == {"sums", "text"}
  read = {tuple(tokens): mask for tokens, mask in map(corpus.read, range(len(corpus)))}
  for record in conversations:
    expected = encode_conversation(small, record["messages"])
    mask = read[tuple(expected.ids)]
    assert mask.tolist() == expected.loss_mask and any(mask) and not all(mask)

  file.write_text('{"messages": [{"role": "robot", "content": "x"}]}\n')
  with pytest.raises(SourceError, match=r"chat\.jsonl, line at byte 0.*robot"):
    prepare(f"chat:{file}", tmp_path / "bad", small, workers=1, progress=False)
  file.write_text('{"text": "x"}\n')
  with pytest.raises(SourceError, match="a list 'messages'"):
    prepare(f"chat:{file}", tmp_path / "worse", small, workers=1, progress=False)
