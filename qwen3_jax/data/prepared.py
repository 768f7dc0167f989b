"""PreparedCorpus: random access to the documents of a prepared corpus (format: records.py)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from qwen3_jax.data.records import (
  SPLITS,
  DataError,
  Predictions,
  decode_predictions,
  decode_record,
  first_line,
  read_index,
  read_manifest,
  shard_path,
)

# Single records from anywhere in a shard: reading ahead would be wasted.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 32768
T = TypeVar("T", bound=tuple)


class PreparedCorpus:
  """One split of a prepared corpus, N documents over its shards.

  Any number of threads may read at once. Shards are opened when first read.

  Attributes:
    path: the corpus's folder.
    manifest: what `manifest.json` holds.
    lengths: int32 [N], tokens of each document.
    domains, languages: uint16 [N], indices into `domain_names` and `language_names` (sorted).
    tokens_total: tokens of the split.
    top_k: predictions that are stored of a token; 0: none.
  """

  def __init__(self, path: Path, split: str, manifest: dict[str, Any]):
    self.path = path
    self.split = split
    self.manifest = manifest
    counts = manifest["splits"][split]
    self._shards = [shard_path(path, split, number) for number in range(counts["shards"])]
    indices = [read_index(shard) for shard in self._shards]
    for shard in self._shards:
      if not shard.is_file():
        raise DataError(f"{shard}: missing")
    self.lengths = _concatenate([index["lengths"] for index in indices], np.int32)
    self.domains, self.domain_names = _merge_labels(indices, "domain")
    self.languages, self.language_names = _merge_labels(indices, "language")
    self.top_k = int(manifest.get("top_k", 0))
    self.tokens_total = int(self.lengths.sum(dtype=np.int64))
    if (len(self.lengths), self.tokens_total) != (counts["documents"], counts["tokens"]):
      raise DataError(
        f"{path / split}: {len(self.lengths)} documents, {self.tokens_total} tokens in the shards' indices; "
        f"the manifest says {counts['documents']}, {counts['tokens']}"
      )
    self._first = np.cumsum([0] + [len(index["lengths"]) for index in indices])  # document at which each shard starts
    self._readers: list[ArrayRecordReader | None] = [None] * len(self._shards)
    self._opening = threading.Lock()

  @classmethod
  def open(cls, path: str | os.PathLike, split: str = "train") -> PreparedCorpus:
    """Opens a split, "train" or "validation". The latter may be empty. Raises DataError naming the file at fault."""
    if split not in SPLITS:
      raise DataError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
    corpus = cls(Path(path), split, read_manifest(path))
    if split == "train" and not corpus.tokens_total:
      raise DataError(f"{corpus.path / split}: no tokens; an empty corpus cannot be trained on")
    return corpus

  def __len__(self) -> int:
    return len(self.lengths)

  def tokens(self, i: int, start: int = 0, length: int | None = None) -> np.ndarray:
    """Tokens of document `i` from `start`, at most `length` of them: int32 [n]."""
    return self.read(i, start, length)[0]

  def read(self, i: int, start: int = 0, length: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """As `tokens`, with the loss mask: bool [n], or None where the document has none."""
    return self._decoded(i, lambda record: decode_record(record, start, length))[:2]

  def read_with_predictions(
    self, i: int, start: int, length: int, top_k: int
  ) -> tuple[np.ndarray, np.ndarray | None, Predictions | None]:
    """As `read`, with what a teacher predicts in the places of the tokens: [n, top_k]; None where that is not known."""

    def decode(record: bytes) -> tuple[np.ndarray, np.ndarray | None, int, Predictions | None]:
      return *decode_record(record, start, length), decode_predictions(record, top_k, start, length)

    tokens, mask, _, predictions = self._decoded(i, decode)
    return tokens, mask, predictions

  def _decoded(self, i: int, decode: Callable[[bytes], T]) -> T:
    """What `decode` makes of the record of document `i`: tokens, mask, how many tokens it has, ..."""
    if not 0 <= i < len(self):
      raise IndexError(f"{self.path / self.split}: document {i} of {len(self)}")
    shard = int(np.searchsorted(self._first, i, side="right")) - 1
    position = int(i - self._first[shard])
    reader = self._reader(shard)
    try:
      found = decode(reader.read([position])[0])
    except (RuntimeError, ValueError, IndexError) as error:
      raise DataError(f"{self._shards[shard]}: document {position} is damaged ({first_line(error)})") from None
    if found[2] != self.lengths[i]:
      raise DataError(
        f"{self._shards[shard]}: document {position} has {found[2]} tokens; its index says {self.lengths[i]}"
      )
    return found

  def _reader(self, shard: int) -> ArrayRecordReader:
    if (reader := self._readers[shard]) is not None:
      return reader
    with self._opening:
      if (reader := self._readers[shard]) is not None:
        return reader
      path = self._shards[shard]
      expected = int(self._first[shard + 1] - self._first[shard])
      reader = ArrayRecordReader(os.fspath(path), _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES)
      if not reader.ok() or reader.num_records() != expected:
        found = f"{reader.num_records()} documents" if reader.ok() else "nothing that can be read"
        raise DataError(f"{path}: truncated or damaged ({found}; its index says {expected} documents)")
      self._readers[shard] = reader
      return reader


def _concatenate(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
  return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


def _merge_labels(indices: list[dict[str, np.ndarray]], kind: str) -> tuple[np.ndarray, list[str]]:
  """Ids over all shards and the sorted names they index; every shard numbers its own names."""
  names = sorted({str(name) for index in indices for name in index[f"{kind}_names"]})
  number = {name: i for i, name in enumerate(names)}
  renumbered = []
  for index in indices:
    to_merged = np.asarray([number[str(name)] for name in index[f"{kind}_names"]], np.uint16)
    renumbered.append(to_merged[index[kind]] if len(to_merged) else np.zeros(0, np.uint16))
  return _concatenate(renumbered, np.uint16), names
