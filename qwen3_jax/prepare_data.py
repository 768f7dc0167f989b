"""Tokenises a corpus: python -m qwen3_jax.prepare_data --source=jsonl:web/*.jsonl.zst --tokenizer=DIR --output=DIR

Interrupted work continues when the same command is given again. Sources (docs/data.md says more):

  text:FILES jsonl:FILES parquet:FILES arrayrecord:FILES   paths, globs or folders, separated by commas
  tfds:NAME[/CONFIG][:SPLIT][@DATA_DIR]                    TensorFlow Datasets, as ArrayRecord
  hf:NAME_OR_FOLDER[:SPLIT]                                Hugging Face datasets
  python:                                                  code, documentation and translations of this installation
  debian-docs[:[PACKAGES][@CACHE_DIR]]                     documentation in some thirty languages, where apt exists
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from qwen3_jax.data.prepare import prepare
from qwen3_jax.data.sources import documents, open_source
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.train_tokenizer import train_sentencepiece

_SOURCE = flags.DEFINE_string("source", None, "What to read, kind:location.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the prepared corpus.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder or file of the tokenizer.", required=True)
_TRAIN = flags.DEFINE_integer(
  "train_tokenizer", 0, "If there is no tokenizer yet, train one of so many pieces on the source and keep it there."
)
_TEXT_FIELD = flags.DEFINE_string("text_field", "text", "Field of a record that holds its text.")
_DOMAIN = flags.DEFINE_string("domain", "", "Label of documents that carry none; empty: text.")
_LANGUAGE = flags.DEFINE_string("language", "", "Label of documents that carry none; empty: und (undetermined).")
_VALIDATION = flags.DEFINE_float("validation_fraction", 0.02, "Share of the documents kept for validation.")
_LIMIT = flags.DEFINE_float("limit_megabytes", 0, "Raw text to read at most, in MB; 0: all.")
_SHARDS = flags.DEFINE_integer("num_shards", 0, "Shards to write; 0: one a file or part of one, at most 64.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: one a core.")


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  source = _SOURCE.value if ":" in _SOURCE.value else f"{_SOURCE.value}:"
  try:
    manifest = prepare(
      source,
      _OUTPUT.value,
      _tokenizer(source),
      text_field=_TEXT_FIELD.value,
      domain=_DOMAIN.value,
      language=_LANGUAGE.value,
      validation_fraction=_VALIDATION.value,
      limit_megabytes=_LIMIT.value,
      num_shards=_SHARDS.value,
      workers=_WORKERS.value,
    )
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f"error: {error}")
  print(
    f"{_OUTPUT.value}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens, {manifest['bytes']:,} bytes"
  )
  for kind in ("domain", "language"):
    counts = sorted(manifest[f"tokens_per_{kind}"].items(), key=lambda item: -item[1])
    print(f"  tokens per {kind}: " + ", ".join(f"{name} {count:,}" for name, count in counts))
  if manifest["replaced_characters"]:
    print(f"  {manifest['replaced_characters']:,} undecodable byte sequences became U+FFFD")


def _tokenizer(source: str) -> Tokenizer:
  """The tokenizer of --tokenizer, trained first if it is not there and --train_tokenizer says so."""
  path = Path(_TOKENIZER.value)
  if _TRAIN.value and not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
    texts = (document.text for document in documents(open_source(source, text_field=_TEXT_FIELD.value)))
    train_sentencepiece(texts, path / "tokenizer.model", _TRAIN.value)
  return Tokenizer.from_pretrained(path)


if __name__ == "__main__":
  app.run(main)
