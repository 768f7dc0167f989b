"""Writes small prepared corpora for tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data.records import ShardWriter, shard_path, write_manifest


@dataclasses.dataclass
class Document:
  tokens: np.ndarray
  domain: str = "web"
  language: str = "en"
  loss_mask: np.ndarray | None = None


def random_documents(count: int, mean_length: float, *, seed: int, domain: str = "web", first_token: int = 0) -> list:
  """Documents of exponential length; every token of every document is another number, from `first_token` up."""
  lengths = np.maximum(np.random.default_rng(seed).exponential(mean_length, count).astype(int), 1)
  ends = first_token + np.cumsum(lengths)
  return [Document(np.arange(end - length, end), domain) for length, end in zip(lengths, ends)]


def write_corpus(
  folder: Path, train: list[Document], validation: list[Document] | None = None, shards: int = 2, **manifest: Any
) -> Path:
  """Writes and returns `folder`; the documents are dealt to `shards` shards of a split in contiguous runs."""
  splits = {}
  for split, documents in (("train", train), ("validation", validation or [])):
    parts = [part for part in np.array_split(np.arange(len(documents)), shards) if len(part)]
    for number, part in enumerate(parts):
      with ShardWriter(shard_path(folder, split, number)) as writer:
        for i in part:
          document = documents[i]
          writer.add(document.tokens, document.domain, document.language, document.loss_mask)
    tokens = sum(len(document.tokens) for document in documents)
    splits[split] = {"shards": len(parts), "documents": len(documents), "tokens": tokens}
  counts = {
    "version": 1,
    "splits": splits,
    "tokens_per_language": {},
    "tokens_per_domain": {},
    "documents": sum(split["documents"] for split in splits.values()),
    "bytes": 0,
    "replaced_characters": 0,
    "tokenizer": "test",
    "vocab_size": 2**31 - 1,
    "source": "test",
  }
  folder.mkdir(parents=True, exist_ok=True)
  write_manifest(folder, {**counts, **manifest})
  return folder
