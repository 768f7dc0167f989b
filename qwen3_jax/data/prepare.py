"""Preparation: raw text, tokenised once, to a prepared corpus (format: records.py).

Every shard is written by one process and appears under its name when whole; the manifest comes last. Whatever kills the
work, running it again keeps the finished shards and ends with the same files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from qwen3_jax.data import workers as worker_pool
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.records import (
  FORMAT_VERSION,
  SPLITS,
  DataError,
  ShardWriter,
  read_index,
  read_manifest,
  shard_path,
  write_manifest,
)
from qwen3_jax.data.sources import Document, Source, SourceError, open_source
from qwen3_jax.data.storage_error import Predictor, StorageError, described
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.task_progress import task_progress

_MAX_SHARDS = 64  # unless asked for more
_BATCH_CHARACTERS = 1 << 20  # text tokenised at once
_PLAN = "plan.json"
_SUMMARIES = "summaries"  # one file a shard: written after the shard, what its index does not say


def is_prepared(path: str | os.PathLike[str]) -> bool:
  """Whether `path` holds a complete prepared corpus."""
  return Path(path, "manifest.json").is_file()


def fingerprint(source: str, tokenizer: Tokenizer, **options: Any) -> str:
  """Names what `prepare` makes of these arguments, for a folder in a cache.

  It is of the arguments alone: a prepared corpus is a snapshot, and text that changes in place is not noticed.
  """
  described = json.dumps([FORMAT_VERSION, source, tokenizer.fingerprint, sorted(options.items())])
  return hashlib.sha256(described.encode()).hexdigest()[:12]


def prepare(
  source: str,
  output: str | os.PathLike[str],
  tokenizer: Tokenizer,
  *,
  text_field: str = "text",
  domain: str = "",
  language: str = "",
  validation_fraction: float = 0.02,
  limit_megabytes: float = 0,
  num_shards: int = 0,
  workers: int = 0,
  progress: bool = True,
  predictor: Predictor | None = None,
) -> dict[str, Any]:
  """Tokenises `source` (see `open_source`) into the folder `output` and returns its manifest.

  The result is a function of the text and the options before `workers`; work that was cut short continues, complete
  work is returned as it is.

  Args:
    text_field: field of a record that holds its text.
    domain, language: labels of documents that carry none; "" is "text" and "und" (ISO 639: undetermined).
    validation_fraction: share of the documents, chosen by the hash of their text, so that equal documents are never in
      both splits.
    limit_megabytes: bound on the raw text read, in MB; 0 reads all.
    num_shards: 0 is one for each unit of the source, at most 64. With a predictor it may be more: a shard is what a
      kill costs at most.
    workers: processes; 0 is one a core.
    progress: whether to show it on standard error.
    predictor: its predictions are stored, and in the manifest `top_k`, how many of a token, and `storage_error`, what
      they lose. It works in this process.

  The tokenizer's `eos_id` ends every document. Text that is only white space is left out.

  Raises:
    DataError: `output` holds something else, or the source is unknown, damaged or without text (SourceError).
  """
  if not 0 <= validation_fraction < 1:
    raise DataError(f"validation_fraction: {validation_fraction}; expected at least 0 and less than 1")
  output = Path(output)
  options: dict[str, Any] = {
    "text_field": text_field,
    "domain": domain or "text",
    "language": language or "und",
    "validation_fraction": validation_fraction,
    "limit_megabytes": limit_megabytes,
    "num_shards": num_shards,
  }
  plan: dict[str, Any] = {"version": FORMAT_VERSION, "source": source, "tokenizer": tokenizer.fingerprint, **options}
  if predictor is not None:
    plan |= {"teacher": predictor.name, "top_k": predictor.top_k}
  output.mkdir(parents=True, exist_ok=True)
  with _lock(output):
    _check_same(output, plan)
    if is_prepared(output):
      return read_manifest(output)
    opened = open_source(source, text_field=text_field)
    if predictor is not None:
      opened = _Dealt(opened, -(-num_shards // len(opened.units)))
      workers = 1
    shards = min(len(opened.units), num_shards or _MAX_SHARDS)
    listing = hashlib.sha256("\n".join(map(repr, opened.units)).encode(errors="surrogatepass")).hexdigest()
    _start(output, {**plan, "listing": listing})
    work = _Work(
      source=opened,
      tokenizer=tokenizer,
      output=output,
      domain=options["domain"],
      language=options["language"],
      validation_fraction=validation_fraction,
      shards=shards,
      limit_bytes=int(limit_megabytes * 1e6 / shards) if limit_megabytes else None,
      predictor=predictor,
    )
    missing = [shard for shard in range(shards) if not work.summary(shard).exists()]
    console = Console(stderr=True, quiet=not progress, soft_wrap=True, highlight=False)
    with task_progress(console) as on_task:
      title = f"Preparing {source}"
      on_task(title, 0, len(missing))
      for done, _ in enumerate(worker_pool.run(work.write_shard, missing, workers=workers), 1):
        on_task(title, done, len(missing))
    manifest = _manifest(output, plan, tokenizer, [work.summary(shard) for shard in range(shards)])
    write_manifest(output, manifest)
    counted = f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens"
    console.print(f"Prepared {source}: {counted}", markup=False)
    return manifest


class _Dealt:
  """A source whose units are dealt to `parts` smaller ones each, document by document."""

  def __init__(self, source: Source, parts: int):
    self._source = source
    self.units = [(unit, part, max(parts, 1)) for unit in source.units for part in range(max(parts, 1))]

  def read(self, unit: tuple[Any, int, int]) -> Iterator[Document]:
    of_source, part, parts = unit
    return itertools.islice(self._source.read(of_source), part, None, parts)


@dataclasses.dataclass(frozen=True)
class _Work:
  """Everything a worker needs to write any shard."""

  source: Source
  tokenizer: Tokenizer
  output: Path
  domain: str
  language: str
  validation_fraction: float
  shards: int
  limit_bytes: int | None  # of raw text, per shard
  predictor: Predictor | None

  def summary(self, shard: int) -> Path:
    return self.output / _SUMMARIES / f"{shard:05d}.json"

  def write_shard(self, shard: int) -> None:
    """Writes one shard of both splits."""
    counts = Counter(documents=0, tokens=0, bytes=0, replaced=0)
    error = StorageError()
    with contextlib.ExitStack() as stack:
      writers = [stack.enter_context(ShardWriter(shard_path(self.output, split, shard))) for split in SPLITS]
      for batch in _batches(self._documents(shard)):
        found = [(self._checked(ids, document), mask) for document, (ids, mask) in zip(batch, self._encoded(batch))]
        predicted = [None] * len(batch) if self.predictor is None else self.predictor(found)
        for document, (tokens, mask), predictions in zip(batch, found, predicted, strict=True):
          text = document.text.encode(errors="replace")
          writer = writers[_hash_fraction(text) < self.validation_fraction]
          labels = document.domain or self.domain, document.language or self.language
          writer.add(tokens, *labels, mask, predictions and predictions.predictions)
          error.add(predictions)
          counts.update(documents=1, tokens=len(tokens), bytes=len(text), replaced=document.replaced)
    stored = {} if self.predictor is None else {"storage_error": dataclasses.asdict(error)}
    _write_json(self.summary(shard), {**counts, **stored})

  def _encoded(self, batch: list[Document]) -> Iterator[tuple[list[int], np.ndarray | None]]:
    """Ids and loss mask of each document: of text, with the document end and no mask."""
    texts = [document.text for document in batch if document.conversation is None]
    of_texts = iter(self.tokenizer.encode_batch(texts, allow_special=False))
    for document in batch:
      if document.conversation is None:
        yield [*next(of_texts), self.tokenizer.eos_id], None
        continue
      try:
        ids, mask = encode_conversation(self.tokenizer, **document.conversation)
      except ValueError as error:
        raise SourceError(f"{document.id}: {error}") from None
      yield ids, np.asarray(mask, bool)

  def _checked(self, ids: list[int], document: Document) -> np.ndarray:
    tokens = np.array(ids, np.int64)
    if tokens.max() >= self.tokenizer.vocab_size:
      raise DataError(
        f"{document.id}: token id {tokens.max()}, the tokenizer's vocabulary is {self.tokenizer.vocab_size}"
      )
    return tokens

  def _documents(self, shard: int) -> Iterator[Document]:
    left = self.limit_bytes
    for unit in self.source.units[shard :: self.shards]:
      for document in self.source.read(unit):
        if not document.text.strip():
          continue
        if left is not None:
          if left <= 0:
            return
          left -= len(document.text.encode(errors="replace"))
        yield document


def _manifest(output: Path, plan: dict[str, Any], tokenizer: Tokenizer, summaries: list[Path]) -> dict[str, Any]:
  """Counts over all shards, from their indices and summaries."""
  totals = Counter[str]()
  errors = []
  for file in summaries:
    summary = json.loads(file.read_bytes())
    if "storage_error" in summary:
      errors.append(StorageError(**summary.pop("storage_error")))
    totals.update(summary)
  if not totals["documents"]:
    raise SourceError(f"source={plan['source']!r}: empty, there is no text in it")
  splits = {}
  per_label: dict[str, Counter[str]] = {"domain": Counter(), "language": Counter()}
  for split in SPLITS:
    indices = [read_index(shard_path(output, split, shard)) for shard in range(len(summaries))]
    for index in indices:
      for kind, counter in per_label.items():
        sums = np.bincount(index[kind], index["lengths"], len(index[f"{kind}_names"]))
        counter.update({str(name): int(count) for name, count in zip(index[f"{kind}_names"], sums)})
    splits[split] = {
      "shards": len(summaries),
      "documents": sum(len(index["lengths"]) for index in indices),
      "tokens": sum(int(index["lengths"].sum(dtype=np.int64)) for index in indices),
    }
  return {
    **plan,
    "documents": totals["documents"],
    "tokens": totals["tokens"],
    "bytes": totals["bytes"],
    "replaced_characters": totals["replaced"],
    "tokens_per_domain": dict(per_label["domain"]),
    "tokens_per_language": dict(per_label["language"]),
    "vocab_size": tokenizer.vocab_size,
    "eos_id": tokenizer.eos_id,
    "splits": splits,
    **({"storage_error": described(errors)} if errors else {}),
  }


def _check_same(output: Path, plan: dict[str, Any]) -> None:
  """Raises DataError if `output` holds anything but this corpus or the beginning of it."""
  file = output / _PLAN
  if not file.exists():
    others = sorted(entry.name for entry in output.iterdir() if not entry.name.startswith("."))
    if others:
      raise DataError(f"{output}: holds {others[0]!r} and no prepared corpus; choose another folder")
    return
  there = json.loads(file.read_bytes())
  for key, value in plan.items():
    if there.get(key) != value:
      raise DataError(f"{output}: holds a corpus with {key}={there.get(key)!r}, not {value!r}; choose another folder")


def _start(output: Path, plan: dict[str, Any]) -> None:
  """Notes what is being prepared. What was made of a source whose files have changed since is dropped."""
  file = output / _PLAN
  if file.exists() and json.loads(file.read_bytes()) != plan:
    for name in (_SUMMARIES, *SPLITS):
      shutil.rmtree(output / name, ignore_errors=True)
  (output / _SUMMARIES).mkdir(exist_ok=True)
  _write_json(file, plan)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
  batch: list[Document] = []
  size = 0
  for document in documents:
    batch.append(document)
    size += len(document.text)
    if size >= _BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _hash_fraction(text: bytes) -> float:
  """Uniform in [0, 1), the same for the same text."""
  return int.from_bytes(hashlib.sha256(text).digest()[:6], "little") / 2**48


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[None]:
  """One process at a time; others wait, then find the work done."""
  with (output / ".lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _write_json(file: Path, value: Any) -> None:
  partial = file.with_name(file.name + ".partial")
  with partial.open("w", encoding="utf-8") as handle:
    json.dump(value, handle, indent=1, ensure_ascii=False)
    handle.flush()
    os.fsync(handle.fileno())
  partial.rename(file)
