"""Perplexity of texts: how well the model predicts each token from what precedes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.evaluation import Evaluation
from qwen3_jax.evaluation.records import read_records
from qwen3_jax.evaluation.scoring import score
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.generate import context_length


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """Texts are lines of JSONL with a field `text`, or one text file."""

  path: Path
  limit: int = 0  # texts; 0: all
  window: int = 0  # tokens that are read at a time; 0: the model's context
  text_field: str = "text"

  def run(self, model: Transformer, tokenizer: Tokenizer) -> Evaluation:
    """Every token of a text counts, its first after the document end, and as in training no end is predicted.

    Raises ValueError for malformed records, OSError if the file cannot be read.
    """
    if self.path.suffix == ".jsonl":
      texts = [str(record[self.text_field]) for record in read_records(self.path, (self.text_field,), self.limit)]
    else:
      texts = [self.path.read_text(encoding="utf-8")]
    documents = tokenizer.encode_batch(texts, allow_special=False)
    sums = rolling(model, documents, tokenizer.eos_id, self.window)
    rows = [
      {"text": text[:80], "tokens": len(ids), "loss": -total / max(len(ids), 1)}
      for text, ids, total in zip(texts, documents, sums)
    ]
    tokens, size = sum(map(len, documents)), sum(len(text.encode()) for text in texts)
    if not tokens:
      raise ValueError(f"{self.path}: the texts are empty")
    loss = -sum(sums) / tokens
    return Evaluation(
      {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": -sum(sums) / math.log(2) / size,
        "tokens": float(tokens),
        "texts": float(len(texts)),
      },
      rows,
    )


def rolling(model: Transformer, documents: Sequence[Sequence[int]], start: int, window: int = 0) -> list[float]:
  """Sum of the log-probabilities of each document's tokens, the first of which follows the token `start`.

  A document longer than the window (0: the model's context) is cut in pieces of that length, the last of which begins
  early enough to be as long: every token is scored once, with at least what its piece holds before it.
  """
  window = window or context_length(model.config)
  if window < 2:
    raise ValueError(f"window={window}, expected at least 2 tokens")
  pieces: list[list[int]] = []
  asked: list[int] = []
  owners: list[int] = []
  for owner, document in enumerate(documents):
    ids = [start, *document]
    place = 1
    while place < len(ids):
      end = min(place + window - 1, len(ids))
      pieces.append(ids[max(0, end - window) : end])
      asked.append(end - place)
      owners.append(owner)
      place = end
  sums = [0.0] * len(documents)
  for owner, scored in zip(owners, score(model, pieces, asked)):
    sums[owner] += float(np.sum(scored.log_probabilities, dtype=np.float64))
  return sums
