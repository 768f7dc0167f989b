"""The on-disk format of a prepared corpus, both directions.

```
<corpus>/manifest.json                        what was prepared, from what, with which tokenizer
<corpus>/train/shard-00000.array_record       one record per document
<corpus>/train/shard-00000.index.npz          lengths int32 [n], domain and language uint16 [n], and their names
<corpus>/validation/...                       likewise; may hold no shard
```

A record is a header of 6 bytes (format version, flags, count of tokens as uint32), the tokens (uint16 where all fit,
else uint32) and, if flagged, a loss mask of one bit per token and a teacher's predictions: their number k for a token
(uint16), and of each token that is predicted and that the mask covers, in order, k ids (uint16 where all fit, else
uint32); then as many log-probabilities (float16: at most 2^-11 of their value off, or 2^-25 close to 0). Everything is
little-endian. A shard is complete when its index is there: the index is renamed into place last.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

FORMAT_VERSION = 1
SPLITS = ("train", "validation")

_HEADER = struct.Struct("<BBI")
_SHORT_TOKENS = 1  # flag: tokens are uint16
_HAS_MASK = 2  # flag: mask bits follow the tokens
_HAS_TOP = 4  # flag: predictions follow
_SHORT_TOP = 8  # flag: their ids are uint16
_TOP_K = struct.Struct("<H")
_LEAST = float(np.finfo(np.float16).min)  # log-probability that can be stored
_SUFFIX = ".array_record"
_INDEX_ARRAYS = ("lengths", "domain", "language", "domain_names", "language_names")
_MANIFEST_KEYS = {
  "version": int,  # of this format
  "splits": dict,  # split -> {"shards", "documents", "tokens"}
  "tokens_per_language": dict,
  "tokens_per_domain": dict,
  "documents": int,  # over both splits
  "bytes": int,  # of the text, in UTF-8
  "replaced_characters": int,  # undecodable bytes that became U+FFFD
  "tokenizer": str,  # fingerprint of the tokenizer
  "vocab_size": int,
  "source": str,
}  # and, where predictions are stored: "top_k", how many of a token


class Predictions(NamedTuple):
  """The most likely tokens in the places of n tokens, most likely first: [n, k]."""

  ids: np.ndarray  # int32; -1: none is known
  log_probabilities: np.ndarray  # float32: of the whole vocabulary; 0 where none is known


class DataError(ValueError):
  """A prepared corpus, or a request for data, that cannot be used. One line that names the file or the value."""


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or its type where it has none."""
  return (str(error) or type(error).__name__).splitlines()[0]


def predicted_tokens(count: int, loss_mask: np.ndarray | None) -> np.ndarray:
  """Of which of a document's tokens predictions are stored: bool [count]. Nothing predicts the first."""
  found = np.ones(count, bool) if loss_mask is None else np.array(loss_mask, bool)
  found[:1] = False
  return found


def encode_record(
  tokens: np.ndarray, loss_mask: np.ndarray | None = None, predictions: Predictions | None = None
) -> bytes:
  """Bytes of one document.

  Args:
    tokens: [n], integers in [0, 2^31).
    loss_mask: bool [n].
    predictions: of `predicted_tokens` alone, in their order.
  """
  tokens = np.asarray(tokens)
  if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
    raise DataError(f"tokens: shape {tokens.shape}, dtype {tokens.dtype}; expected one dimension of integers")
  short = _largest("tokens", tokens) < 2**16
  flags = (_SHORT_TOKENS if short else 0) | (0 if loss_mask is None else _HAS_MASK)
  parts = [tokens.astype("<u2" if short else "<u4").tobytes()]
  if loss_mask is not None:
    loss_mask = np.asarray(loss_mask, bool)
    if loss_mask.shape != tokens.shape:
      raise DataError(f"loss_mask: shape {loss_mask.shape}; expected that of the tokens, {tokens.shape}")
    parts.append(np.packbits(loss_mask, bitorder="little").tobytes())
  if predictions is not None:
    rows = int(predicted_tokens(tokens.size, loss_mask).sum())
    short = _check_predictions(predictions, rows) < 2**16
    flags |= _HAS_TOP | (_SHORT_TOP if short else 0)
    parts.append(_TOP_K.pack(predictions.ids.shape[1]))
    parts.append(predictions.ids.astype("<u2" if short else "<u4").tobytes())
    parts.append(predictions.log_probabilities.astype("<f2").tobytes())
  return b"".join([_HEADER.pack(FORMAT_VERSION, flags, tokens.size), *parts])


def _check_predictions(predictions: Predictions, rows: int) -> int:
  """The largest id. Raises DataError for what cannot be stored of `rows` tokens."""
  ids, log_probabilities = predictions
  if ids.ndim != 2 or ids.shape != log_probabilities.shape or len(ids) != rows or not 0 < ids.shape[1] < 2**16:
    shapes = f"ids {ids.shape}, log-probabilities {log_probabilities.shape}"
    raise DataError(f"predictions: {shapes}; expected ({rows}, k) of both, k from 1 to 65535")
  if not ((log_probabilities <= 0) & (log_probabilities >= _LEAST)).all():
    raise DataError(f"predictions: log-probabilities outside of {_LEAST:g} to 0")
  return _largest("predictions", ids)


def _largest(name: str, ids: np.ndarray) -> int:
  largest = int(ids.max(initial=0))
  if ids.min(initial=0) < 0 or largest >= 2**31:
    raise DataError(f"{name}: ids from {ids.min()} to {largest}; expected 0 to 2^31 - 1")
  return largest


class _Parts(NamedTuple):
  """Where things lie in a record: views of it."""

  tokens: np.ndarray  # [count]
  mask: np.ndarray | None  # uint8, eight tokens each
  ids: np.ndarray | None  # [predicted tokens, k]
  log_probabilities: np.ndarray | None  # likewise


def _parts(record: bytes) -> _Parts:
  """Raises DataError for a record of another format, or another length than it says."""
  if len(record) < _HEADER.size:
    raise DataError(f"record of {len(record)} bytes; expected at least {_HEADER.size}")
  version, flags, count = _HEADER.unpack_from(record)
  if version != FORMAT_VERSION:
    raise DataError(f"record of format version {version}; expected {FORMAT_VERSION}")
  if flags & ~(_SHORT_TOKENS | _HAS_MASK | _HAS_TOP | _SHORT_TOP):
    raise DataError(f"record with unknown flags {flags:#04x}")
  dtype = np.dtype("<u2" if flags & _SHORT_TOKENS else "<u4")
  mask_start = _HEADER.size + count * dtype.itemsize
  end = mask_start + ((count + 7) // 8 if flags & _HAS_MASK else 0)
  top = end + _TOP_K.size if flags & _HAS_TOP else end
  if len(record) < top or (top == end and len(record) != end):
    raise DataError(f"record of {len(record)} bytes; expected {top} for {count} tokens")
  tokens = np.frombuffer(record, dtype, count, _HEADER.size)
  mask = np.frombuffer(record, np.uint8, end - mask_start, mask_start) if flags & _HAS_MASK else None
  if top == end:
    return _Parts(tokens, mask, None, None)
  (k,) = _TOP_K.unpack_from(record, end)
  shape = (_predicted_before(count, count, mask), k)
  id_type = np.dtype("<u2" if flags & _SHORT_TOP else "<u4")
  size = shape[0] * k
  expected = top + size * (id_type.itemsize + 2)
  if len(record) != expected or not k:
    raise DataError(f"record of {len(record)} bytes; expected {expected} for {k} predictions of {shape[0]} tokens")
  ids = np.frombuffer(record, id_type, size, top).reshape(shape)
  return _Parts(tokens, mask, ids, np.frombuffer(record, "<f2", size, top + size * id_type.itemsize).reshape(shape))


def _predicted_before(start: int, count: int, mask: np.ndarray | None) -> int:
  """How many of the tokens before `start` have predictions, in a document of `count` tokens."""
  start = min(start, count)
  if mask is None:
    return max(start - 1, 0)
  bits = int.from_bytes(mask[: (start + 7) // 8].tobytes(), "little") & ((1 << start) - 1)
  return (bits & ~1).bit_count()


def _mask_bits(mask: np.ndarray, start: int, end: int) -> np.ndarray:
  """bool, of the tokens from `start` to `end`."""
  first_byte = start // 8
  bits = np.unpackbits(mask[first_byte : end // 8 + 1], bitorder="little")
  return bits[start - 8 * first_byte : end - 8 * first_byte].astype(bool)


def decode_record(
  record: bytes, start: int = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray | None, int]:
  """Inverse of `encode_record` for the tokens from `start` on, at most `length` of them; the others cost nothing.

  Returns tokens int32 [n], loss mask bool [n] or None, and how many tokens the document has. Raises DataError on a
  damaged record.
  """
  parts = _parts(record)
  count = len(parts.tokens)
  end = count if length is None else min(start + length, count)
  tokens = parts.tokens[start:end].astype(np.int32)
  if tokens.min(initial=0) < 0:
    raise DataError("record with a token id above 2^31 - 1")
  return tokens, None if parts.mask is None else _mask_bits(parts.mask, start, end), count


def decode_predictions(record: bytes, k: int, start: int = 0, length: int | None = None) -> Predictions | None:
  """The `k` most likely tokens in the places of those that `decode_record` gives; None where a record stores none.

  A token without predictions has ids -1, and so have those beyond the number that is stored.
  """
  parts = _parts(record)
  if parts.ids is None or parts.log_probabilities is None:
    return None
  count = len(parts.tokens)
  end = count if length is None else min(start + length, count)
  counted = np.ones(max(end - start, 0), bool) if parts.mask is None else _mask_bits(parts.mask, start, end)
  if not start:
    counted[:1] = False
  first = _predicted_before(start, count, parts.mask)
  rows, stored = slice(first, first + int(counted.sum())), min(k, parts.ids.shape[1])
  ids = np.full((len(counted), k), -1, np.int32)
  log_probabilities = np.zeros((len(counted), k), np.float32)
  ids[counted, :stored] = parts.ids[rows, :stored]
  log_probabilities[counted, :stored] = parts.log_probabilities[rows, :stored]
  if ids[counted, :stored].min(initial=0) < 0:
    raise DataError("record with a predicted id above 2^31 - 1")
  if not ((log_probabilities <= 0) & (log_probabilities >= _LEAST)).all():
    raise DataError("record with log-probabilities that are none")
  return Predictions(ids, log_probabilities)


def shard_path(corpus: str | os.PathLike, split: str, number: int) -> Path:
  """Path of the records of a shard."""
  return Path(corpus) / split / f"shard-{number:05d}{_SUFFIX}"


def index_path(shard: Path) -> Path:
  """Path of the index that belongs to the records at `shard`."""
  return shard.with_name(shard.name.removesuffix(_SUFFIX) + ".index.npz")


class ShardWriter:
  """Writes one shard: records at `path` (see `shard_path`) and its index, both appearing complete or not at all.

  A context manager; leaving it through an exception removes what was written. Raises DataError when the disk is full.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)
    if not self.path.name.endswith(_SUFFIX):
      raise DataError(f"{path}: name of a shard; expected it to end in {_SUFFIX}")
    self.documents = 0
    self.tokens = 0
    self._temporary = self.path.with_name(self.path.name + ".partial")
    self._temporary_index = self.path.with_name(index_path(self.path).name + ".partial")
    self._lengths: list[int] = []
    self._labels: tuple[list[str], list[str]] = ([], [])  # domain, language of each document

  def __enter__(self) -> ShardWriter:
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._writer = ArrayRecordWriter(os.fspath(self._temporary), "group_size:1")
    return self

  def add(
    self,
    tokens: np.ndarray,
    domain: str,
    language: str,
    loss_mask: np.ndarray | None = None,
    predictions: Predictions | None = None,
  ) -> None:
    """Appends a document; arguments as in `encode_record`."""
    record = encode_record(tokens, loss_mask, predictions)
    try:
      self._writer.write(record)
    except RuntimeError as error:
      raise self._failed(error) from None
    self._lengths.append(len(tokens))
    self._labels[0].append(domain)
    self._labels[1].append(language)
    self.documents += 1
    self.tokens += len(tokens)

  def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
    try:
      if kind is None:
        self._writer.close()
        self._write_index()
        _sync(self._temporary)
        index_path(self.path).unlink(missing_ok=True)  # of an older shard: it must not describe the new records
        self._temporary.rename(self.path)
        self._temporary_index.rename(index_path(self.path))
      else:
        with contextlib.suppress(RuntimeError):  # the error under way says more
          self._writer.close()
    except (RuntimeError, OSError) as failure:
      raise self._failed(failure) from None
    finally:
      self._temporary.unlink(missing_ok=True)
      self._temporary_index.unlink(missing_ok=True)

  def _failed(self, error: Exception) -> DataError:
    return DataError(f"{self.path}: could not be written, nothing was kept ({first_line(error)})")

  def _write_index(self) -> None:
    ids, names = zip(*(self._numbered(labels) for labels in self._labels))
    with open(self._temporary_index, "wb") as file:
      np.savez(
        file,
        lengths=np.asarray(self._lengths, np.int32),
        domain=ids[0],
        language=ids[1],
        domain_names=names[0],
        language_names=names[1],
      )
      file.flush()
      os.fsync(file.fileno())

  def _numbered(self, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    names = sorted(set(labels))
    if len(names) > 2**16:
      raise DataError(f"{self.path}: {len(names)} different domains or languages; expected at most 65536")
    number = {name: i for i, name in enumerate(names)}
    return np.asarray([number[label] for label in labels], np.uint16), np.asarray(names, dtype=np.str_)


def read_index(shard: Path) -> dict[str, np.ndarray]:
  """The arrays of a shard's index, by the names in the module's docstring. Raises DataError naming the file."""
  path = index_path(shard)
  try:
    with np.load(path, allow_pickle=False) as file:
      index = {name: file[name] for name in _INDEX_ARRAYS}
  except FileNotFoundError:
    raise DataError(f"{path}: missing") from None
  except Exception as error:  # a damaged archive makes the reader fail in many ways
    raise DataError(f"{path}: damaged ({first_line(error)})") from None
  count = len(index["lengths"])
  for labels in ("domain", "language"):
    if len(index[labels]) != count or (count and index[labels].max() >= len(index[f"{labels}_names"])):
      raise DataError(f"{path}: damaged ({labels} does not fit {count} documents)")
  if index["lengths"].min(initial=0) < 0:
    raise DataError(f"{path}: damaged (negative length)")
  return index


def write_manifest(corpus: str | os.PathLike, manifest: dict[str, Any]) -> None:
  """Writes `manifest.json`, the last thing that makes a corpus; the keys are checked."""
  path = Path(corpus) / "manifest.json"
  _check_manifest(path, manifest)
  temporary = path.with_name("manifest.json.partial")
  temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
  _sync(temporary)
  temporary.rename(path)


def read_manifest(corpus: str | os.PathLike) -> dict[str, Any]:
  """The manifest of a prepared corpus. Raises DataError naming the file."""
  path = Path(corpus) / "manifest.json"
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    raise DataError(f"{path}: missing; not a prepared corpus, or its preparation has not finished") from None
  except ValueError as error:
    raise DataError(f"{path}: damaged ({error})") from None
  _check_manifest(path, manifest)
  return manifest


def _check_manifest(path: Path, manifest: Any) -> None:
  if not isinstance(manifest, dict) or manifest.get("version") != FORMAT_VERSION:
    version = manifest.get("version") if isinstance(manifest, dict) else None
    raise DataError(f"{path}: format version {version!r}; expected {FORMAT_VERSION}")
  for key, kind in _MANIFEST_KEYS.items():
    if not isinstance(manifest.get(key), kind):
      raise DataError(f"{path}: {key} is {manifest.get(key)!r}; expected {kind.__name__}")
  if not isinstance(manifest.get("top_k", 0), int) or manifest.get("top_k", 0) < 0:
    raise DataError(f"{path}: top_k is {manifest['top_k']!r}; expected a number of predictions")
  for split in SPLITS:
    counts = manifest["splits"].get(split)
    if not isinstance(counts, dict) or any(
      not isinstance(counts.get(k), int) or counts[k] < 0 for k in ("shards", "documents", "tokens")
    ):
      raise DataError(f"{path}: splits.{split} is {counts!r}; expected counts of shards, documents and tokens")


def _sync(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
