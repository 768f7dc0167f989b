"""Raw text: one interface over the places it comes from.

| source | documents |
|---|---|
| `text:FILES` | one a file |
| `jsonl:FILES` | one a line; plain, .gz or .zst |
| `chat:FILES` | one a line of JSON with `messages`, `loss` of "all" or the "last" answer, see `chat_source.py` |
| `traces:SHARE:PROBLEMS` | one a problem, its thinking written by rule, see `problems/traces.py` |
| `parquet:FILES` | one a row (needs pyarrow) |
| `arrayrecord:FILES` | one a record: UTF-8 text, or a JSON object |
| `tfds:NAME[/CONFIG][:SPLIT][@DATA_DIR]` | one an example of a TFDS data set prepared as ArrayRecord |
| `hf:NAME_OR_FOLDER[:SPLIT]` | one a row of a Hugging Face data set (needs datasets) |
| `python:` | text of this Python installation, see `python_text.py` |
| `debian-docs:[PACKAGES][@CACHE_DIR]` | documentation from Debian packages, see `debian_docs.py` |

FILES are paths, globs (`**` too) or folders, separated by commas. Records may carry `domain`, `language` and `id`.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import zstandard

from qwen3_jax import nearest
from qwen3_jax.data.records import DataError

_SPLIT_BYTES = 64 << 20  # plain files of lines are read in units of this size


class SourceError(DataError):
  """A source that is unknown, empty or damaged."""


@dataclasses.dataclass(frozen=True)
class Document:
  text: str
  domain: str = ""  # "" where the source does not say
  language: str = ""
  id: str = ""  # unique in the source, for messages
  replaced: int = 0  # undecodable byte sequences that became U+FFFD
  conversation: Mapping[str, Any] | None = None  # {"messages", "tools"}: encoded in place of the text


class Source(Protocol):
  """Text as a fixed list of units, each read on its own: what parallel preparation hands out. Can be pickled."""

  @property
  def units(self) -> Sequence[Any]: ...

  def read(self, unit: Any) -> Iterator[Document]: ...


def documents(source: Source) -> Iterator[Document]:
  """Every document, in order."""
  for unit in source.units:
    yield from source.read(unit)


def decode(data: bytes) -> tuple[str, int]:
  """(text, sequences that are not UTF-8 and became U+FFFD)."""
  try:
    return data.decode(), 0
  except UnicodeDecodeError:
    text = data.decode(errors="replace")
    return text, text.count("\ufffd") - data.count(b"\xef\xbf\xbd")


def open_source(spec: str, *, text_field: str = "text") -> Source:
  """The source `kind:location`; `text_field` names the field that holds a record's text.

  Raises SourceError for an unknown kind or a source without any units, ImportError naming the extra to install.
  """
  kind, separator, location = spec.partition(":")
  if not separator or kind not in KINDS:
    hint = nearest.sentence(kind, KINDS)
    raise SourceError(f"source={spec!r}: expected kind:location with kind one of {', '.join(KINDS)}.{hint}")
  source = KINDS[kind](location, text_field)
  if not source.units:
    raise SourceError(f"source={spec!r}: empty, there is no text in it")
  return source


def find_files(location: str, suffixes: Sequence[str] = ()) -> list[Path]:
  """Files that comma-separated paths, globs and folders name, sorted. Of folders, those with one of `suffixes`."""
  found: set[str] = set()
  for pattern in location.split(","):
    pattern = os.path.expanduser(pattern.strip())
    if os.path.isdir(pattern):
      inside = glob.glob(os.path.join(glob.escape(pattern), "**"), recursive=True)
      names = [name for name in inside if not suffixes or name.endswith(tuple(suffixes))]
    else:
      names = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    names = [name for name in names if os.path.isfile(name)]
    if not names:
      raise SourceError(f"no files match {pattern!r}")
    found.update(names)
  return [Path(name) for name in sorted(found)]


def _record_document(record: Mapping[str, Any], text_field: str, id: str) -> Document:
  if not isinstance(record, Mapping):
    raise SourceError(f"{id}: expected an object with a {text_field!r} field, found {type(record).__name__}")
  if text_field not in record:
    hint = nearest.sentence(text_field, record)
    raise SourceError(f"{id}: no field {text_field!r}; it has {', '.join(map(str, record))}.{hint}")
  text, replaced = record[text_field], 0
  if isinstance(text, bytes):
    text, replaced = decode(text)
  if not isinstance(text, str):
    raise SourceError(f"{id}: field {text_field!r} holds {type(text).__name__}, expected text")
  return Document(text, **record_labels(record, id), replaced=replaced)


def record_labels(record: Mapping[str, Any], id: str) -> dict[str, Any]:
  """Domain, language and id of a record; `id` is where it stands."""
  labels: dict[str, Any] = {key: _label(record.get(key)) for key in ("domain", "language", "id")}
  return labels | {"id": labels["id"] or id}


def _label(value: Any) -> str:
  return value.decode(errors="replace") if isinstance(value, bytes) else "" if value is None else str(value)


class TextFiles:
  """One document a file."""

  def __init__(self, location: str, text_field: str = "text"):
    self.units = find_files(location)

  def read(self, unit: Path) -> Iterator[Document]:
    text, replaced = decode(unit.read_bytes())
    yield Document(text, id=str(unit), replaced=replaced)


class JsonLines:
  """One document a line. Plain files are cut in units of 64 MB, compressed ones are a unit each."""

  def __init__(self, location: str, text_field: str = "text"):
    self._text_field = text_field
    self.units: list[tuple[Path, int, int | None]] = []  # file, first byte, last byte (None: the end)
    for file in find_files(location, (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")):
      if file.suffix in (".gz", ".zst"):
        self.units.append((file, 0, None))
      else:
        size = file.stat().st_size
        self.units += [(file, begin, begin + _SPLIT_BYTES) for begin in range(0, size, _SPLIT_BYTES)]

  def read(self, unit: tuple[Path, int, int | None]) -> Iterator[Document]:
    file, begin, end = unit
    for offset, line in _lines(file, begin, end):
      if not line.strip():
        continue
      id = f"{file}, line at byte {offset}"
      text, replaced = decode(line)
      try:
        record = json.loads(text)
      except json.JSONDecodeError as error:
        raise SourceError(f"{id}: not valid JSON ({error})") from None
      document = self.document(record, id)
      yield dataclasses.replace(document, replaced=document.replaced + replaced)

  def document(self, record: Any, id: str) -> Document:
    """Of a line's value."""
    return _record_document(record, self._text_field, id)


def _lines(file: Path, begin: int, end: int | None) -> Iterator[tuple[int, bytes]]:
  """(offset, line) of the lines that start in begin..end."""
  try:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
      if begin:
        opened.seek(begin - 1)
        opened.readline()  # the line that the unit before reads
      offset = opened.tell()
      for line in _zstandard_lines(opened) if file.suffix == ".zst" else opened:
        if end is not None and offset >= end:
          return
        yield offset, line
        offset += len(line)
  except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
    raise SourceError(f"{file}: damaged ({error})") from None


def _zstandard_lines(file: Any) -> Iterator[bytes]:
  """Lines of a Zstandard file. Unlike the library's reader, it raises EOFError when the file is cut short."""
  frame = zstandard.ZstdDecompressor().decompressobj()
  rest = b""
  while data := file.read(1 << 20):
    while data:
      if frame.eof:
        frame = zstandard.ZstdDecompressor().decompressobj()
      *lines, rest = (rest + frame.decompress(data)).split(b"\n")
      yield from (line + b"\n" for line in lines)
      data = frame.unused_data
  if not frame.eof:
    raise EOFError("it ends within a frame")
  if rest:
    yield rest


class Parquet:
  """One document a row; a unit is a row group."""

  def __init__(self, location: str, text_field: str = "text"):
    parquet = _import("pyarrow.parquet", "parquet", "data")
    self._text_field = text_field
    self.units: list[tuple[Path, int]] = []
    for file in find_files(location, (".parquet",)):
      try:
        groups = parquet.ParquetFile(file).metadata.num_row_groups
      except (OSError, ValueError) as error:
        raise SourceError(f"{file}: not a Parquet file ({error})") from None
      self.units += [(file, group) for group in range(groups)]

  def read(self, unit: tuple[Path, int]) -> Iterator[Document]:
    file, group = unit
    reader = _import("pyarrow.parquet", "parquet", "data").ParquetFile(file)
    columns = [name for name in (self._text_field, "domain", "language", "id") if name in reader.schema_arrow.names]
    if self._text_field not in columns:
      _record_document(dict.fromkeys(reader.schema_arrow.names), self._text_field, str(file))  # raises
    row = 0
    for batch in reader.iter_batches(batch_size=256, row_groups=[group], columns=columns):
      for record in batch.to_pylist():
        yield _record_document(record, self._text_field, f"{file}, row group {group}, row {row}")
        row += 1


class ArrayRecords:
  """One document a record: a JSON object or plain UTF-8 text. A unit is up to 10,000 records."""

  def __init__(self, location: str, text_field: str = "text"):
    import grain

    self._text_field = text_field
    self.units: list[tuple[Path, int, int]] = []
    for file in find_files(location, (".array_record", ".arrayrecord")):
      try:
        records = len(grain.sources.ArrayRecordDataSource([str(file)]))
      except Exception as error:  # the library raises its own kinds
        raise SourceError(f"{file}: not an ArrayRecord file ({error})") from None
      self.units += [(file, begin, min(begin + 10_000, records)) for begin in range(0, records, 10_000)]

  def read(self, unit: tuple[Path, int, int]) -> Iterator[Document]:
    import grain

    file, begin, end = unit
    records = grain.sources.ArrayRecordDataSource([f"{file}[{begin}:{end}]"])
    for first in range(0, end - begin, 256):
      numbers = range(first, min(first + 256, end - begin))
      for number, record in zip(numbers, records.__getitems__(numbers)):
        id = f"{file}, record {begin + number}"
        text, replaced = decode(record)
        if text.startswith("{"):
          try:
            document = _record_document(json.loads(text), self._text_field, id)
            yield dataclasses.replace(document, replaced=document.replaced + replaced)
            continue
          except json.JSONDecodeError:
            pass  # text that happens to start so
        yield Document(text, id=id, replaced=replaced)


class TensorflowDatasets:
  """One document an example. The data set must be there as ArrayRecord; TensorFlow is not needed."""

  def __init__(self, location: str, text_field: str = "text"):
    location, _, self._data_dir = location.partition("@")
    self._name, _, split = location.partition(":")
    self._split, self._text_field = split or "train", text_field
    count = len(self._open())
    self.units = [(begin, min(begin + 10_000, count)) for begin in range(0, count, 10_000)]

  def _open(self) -> Any:
    import tensorflow_datasets as tfds

    try:
      builder = tfds.builder(self._name, data_dir=self._data_dir or None, try_gcs=False, file_format="array_record")
      return builder.as_data_source(split=self._split)
    except Exception as error:  # the library raises many kinds
      lines = str(error).strip().splitlines() or [type(error).__name__]
      raise SourceError(
        f"tfds:{self._name}: split {self._split!r} cannot be opened in {self._data_dir or 'the default data_dir'} "
        f"as ArrayRecord ({lines[0]})"
      ) from None

  def read(self, unit: tuple[int, int]) -> Iterator[Document]:
    records = self._open()
    for first in range(*unit, 256):
      numbers = range(first, min(first + 256, unit[1]))
      for number, record in zip(numbers, records.__getitems__(list(numbers))):
        yield _record_document(record, self._text_field, f"tfds:{self._name}, {self._split} {number}")


class HuggingFaceDatasets:
  """One document a row, of a folder that `save_to_disk` wrote or of a name that `load_dataset` knows."""

  def __init__(self, location: str, text_field: str = "text"):
    self._name, _, split = location.partition(":")
    self._split, self._text_field = split or "train", text_field
    count = len(self._open())
    self.units = [(begin, min(begin + 10_000, count)) for begin in range(0, count, 10_000)]

  def _open(self) -> Any:
    datasets = _import("datasets", "hf", "data")
    try:
      if not os.path.isdir(self._name):
        return datasets.load_dataset(self._name, split=self._split)
      data = datasets.load_from_disk(self._name)
      return data[self._split] if isinstance(data, datasets.DatasetDict) else data
    except Exception as error:  # the library raises many kinds
      lines = str(error).strip().splitlines() or [type(error).__name__]
      raise SourceError(f"hf:{self._name}: split {self._split!r} cannot be opened ({lines[0]})") from None

  def read(self, unit: tuple[int, int]) -> Iterator[Document]:
    for number, record in enumerate(self._open().select(range(*unit)), unit[0]):
      yield _record_document(record, self._text_field, f"hf:{self._name}, {self._split} {number}")


def _python_text(location: str, text_field: str) -> Source:
  from qwen3_jax.data.python_text import PythonText

  return PythonText(location)


def _chat_lines(location: str, text_field: str) -> Source:
  from qwen3_jax.data.chat_source import ChatLines

  return ChatLines(location)


def _traces(location: str, text_field: str) -> Source:
  from qwen3_jax.problems.traces import TraceSource

  return TraceSource(location)


def _debian_docs(location: str, text_field: str) -> Source:
  from qwen3_jax.data.debian_docs import DebianDocs

  return DebianDocs(location)


def _import(module: str, kind: str, extra: str) -> Any:
  import importlib

  try:
    return importlib.import_module(module)
  except ImportError:
    package = module.split(".")[0]
    raise ImportError(
      f"source kind {kind!r} needs {package}, which is not installed: pip install 'qwen3_jax[{extra}]'"
    ) from None


KINDS: dict[str, Any] = {
  "text": TextFiles,
  "jsonl": JsonLines,
  "chat": _chat_lines,
  "traces": _traces,
  "parquet": Parquet,
  "arrayrecord": ArrayRecords,
  "tfds": TensorflowDatasets,
  "hf": HuggingFaceDatasets,
  "python": _python_text,
  "debian-docs": _debian_docs,
}
