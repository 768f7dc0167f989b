"""Training of a small SentencePiece vocabulary."""

import itertools
import unicodedata

import pytest
import sentencepiece

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.tokenizer_backends import QWEN_ADDED_TOKENS
from qwen3_jax.data.train_tokenizer import train_sentencepiece


@pytest.mark.parametrize("vocab_size", [512, 8192])
def test_training_is_deterministic_and_lossless(vocab_size, standard_library, tmp_path):
  texts = standard_library
  for name in ("a.model", "b.model"):
    train_sentencepiece(iter(texts), tmp_path / name, vocab_size)
  assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
  tokenizer = Tokenizer.from_pretrained(tmp_path / "a.model")
  assert tokenizer.vocab_size == vocab_size
  encoded = tokenizer.encode_batch(texts)
  assert [tokenizer.decode(ids) for ids in encoded] == [unicodedata.normalize("NFC", text) for text in texts]
  bytes_per_token = sum(len(text.encode()) for text in texts) / sum(map(len, encoded))
  assert bytes_per_token > {512: 1.6, 8192: 3.3}[vocab_size]


def test_added_tokens_have_one_id_each(small, small_path):
  assert [small.encode(name) for name in QWEN_ADDED_TOKENS] == [[id] for id in range(1, 27)]
  plain = sentencepiece.SentencePieceProcessor(model_file=str(small_path))  # the file is an ordinary model
  assert small.encode("def f(x):\n  return x") == plain.encode("def f(x):\n  return x")


def test_white_space_and_digits(small):
  text = "def f():\n    return 1234\n\n\tx\r\n  \xa0 "
  ids = small.encode(text)
  assert small.decode(ids) == text
  assert [small.decode([id]) for id in ids if small.token_bytes(id).isdigit()] == list("1234")
  assert len(small.encode(" " * 8)) == 1  # indentation is one token


def test_reading_stops_at_the_limit(tmp_path):
  read = 0

  def endless():
    nonlocal read
    for number in itertools.count():
      read += 1
      yield f"line {number} of a text that never ends, with words {number * 7919 % 1000:b}\n" * 20

  train_sentencepiece(endless(), tmp_path / "m.model", 320, max_bytes=100_000)
  assert read < 100


def test_a_long_document_is_read_whole(tmp_path):
  train_sentencepiece(["x" * 50_000 + " zebra" * 2_000], tmp_path / "m.model", 300)
  assert len(Tokenizer.from_pretrained(tmp_path / "m.model").encode(" zebra")) == 1


def test_many_rare_characters_leave_room_for_words(tmp_path):
  """Thousands of ideographs must not fill a vocabulary of 340 pieces."""
  rare = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
  train_sentencepiece([rare, "hello world of words " * 300], tmp_path / "m.model", 340)
  tokenizer = Tokenizer.from_pretrained(tmp_path / "m.model")
  assert len(tokenizer.encode(" hello")) == 1
  assert tokenizer.decode(tokenizer.encode(rare)) == rare


def test_bad_input(tmp_path):
  file = tmp_path / "m.model"
  for texts in ([], ["", " \n"]):
    with pytest.raises(ValueError, match="empty"):
      train_sentencepiece(texts, file, 512)
  with pytest.raises(ValueError, match=r"vocab_size is 5000, but the texts hold only \d+ pieces"):
    train_sentencepiece(["a few words only"], file, 5000)
  with pytest.raises(ValueError, match="vocab_size is 283, expected more than 283"):
    train_sentencepiece(["a few words only"], file, 283)
  assert not list(tmp_path.iterdir())
