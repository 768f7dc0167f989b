"""Training a small SentencePiece vocabulary, for runs too small for Qwen's 151,669 tokens."""

from __future__ import annotations

import collections
import io
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from qwen3_jax.data.tokenizer_backends import QWEN_ADDED_TOKENS

_BASE_PIECES = 1 + len(QWEN_ADDED_TOKENS) + 256  # the unknown piece, Qwen's added tokens, the single bytes
_PIECE_OF_TEXT = re.compile(r"(?s).{1,2000}")  # characters the trainer reads as one sentence
# The trainer keeps these for itself; they are written in bytes when they occur in a text.
_RESERVED = "\0\t\u2581\u2585"


def train_sentencepiece(
  texts: Iterable[str],
  path: str | os.PathLike[str],
  vocab_size: int,
  *,
  max_bytes: int = 8 << 20,
  character_coverage: float = 0.9995,
) -> None:
  """Trains a BPE with byte fallback on the first `max_bytes` UTF-8 bytes of `texts` and writes the model file `path`.

  Text is NFC and otherwise kept as it is, so `decode(encode(text))` is the NFC of any text. Digits stand alone. Qwen's
  26 added tokens have ids 1..26. Characters beyond `character_coverage` of the text, or beyond half of the free pieces,
  are written in bytes. The same texts give the same file.

  Raises ValueError when there is no text, or not enough of it for `vocab_size`, and for a vocabulary of no free piece.
  """
  if vocab_size <= _BASE_PIECES:
    raise ValueError(f"vocab_size is {vocab_size}, expected more than {_BASE_PIECES} (bytes and added tokens)")
  corpus = list(_read(texts, max_bytes))
  if not any(piece.strip() for piece in corpus):
    raise ValueError("cannot train a tokenizer: the texts are empty")

  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_without_rare(corpus, character_coverage, (vocab_size - _BASE_PIECES) // 2),
      model_writer=model,
      model_type="bpe",
      vocab_size=vocab_size,
      character_coverage=1.0,
      byte_fallback=True,
      # The library finds user-defined symbols in every text; control symbols only enter as ids (see Tokenizer.encode).
      control_symbols=list(QWEN_ADDED_TOKENS),
      unk_id=0,
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      max_sentence_length=1 << 16,
      num_threads=1,
      minloglevel=2,
    )
  except (RuntimeError, ValueError) as error:
    limit = re.search(r"value <= (\d+)", str(error))
    if limit is None:
      raise ValueError(f"cannot train a tokenizer of {vocab_size} pieces: {error}") from error
    raise ValueError(f"vocab_size is {vocab_size}, but the texts hold only {limit.group(1)} pieces") from None

  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  with os.fdopen(handle, "wb") as file:
    file.write(model.getvalue())
  os.chmod(temporary, 0o644)
  os.replace(temporary, path)


def _read(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
  """Short pieces of the texts in NFC, up to `max_bytes` in all."""
  left = max_bytes
  for text in texts:
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    for match in _PIECE_OF_TEXT.finditer(text):
      left -= len(match.group().encode())
      if left < 0:
        return
      yield match.group()


def _without_rare(corpus: list[str], coverage: float, limit: int) -> Iterator[str]:
  """The corpus cut at its rare characters: those beyond `coverage` of all, or beyond the `limit` commonest."""
  counts = collections.Counter[str]()
  for piece in corpus:
    counts.update(piece)
  for character in _RESERVED:
    counts.pop(character, None)
  wanted = coverage * counts.total()
  kept: set[str] = set()
  covered = 0
  for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]:
    if covered >= wanted:
      break
    kept.add(character)
    covered += count
  rare = "".join({character for piece in corpus for character in piece} - kept)
  cut = re.compile(f"[{re.escape(rare)}]+" if rare else r"(?!)")
  for piece in corpus:
    yield from filter(None, cut.split(piece))
