"""Perplexity of texts: how well the model predicts each token from what precedes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.evaluation import Evaluation
from qwen3_jax.evaluation.records import field, read_records, read_text
from qwen3_jax.evaluation.scoring import BATCH_TOKENS, score
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.generate import context_length


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """Texts are lines of JSONL with a field `text`, or one text file.

  As lm-evaluation-harness counts: every token of a text, the first of which follows the document end, and not the end
  itself. (In training it is the other way round: nothing precedes a document's first token, and its end is predicted.)
  """

  path: Path
  limit: int = 0  # texts; 0: all
  window: int = 0  # tokens that are read at a time; 0: the model's context
  stride: int = 0  # of windows, see `rolling`
  text_field: str = "text"
  batch_tokens: int = BATCH_TOKENS

  def texts(self) -> list[str]:
    """Raises ValueError for malformed records, OSError if the file cannot be read."""
    if self.path.suffix != ".jsonl":
      return [read_text(self.path)]
    records = read_records(self.path, lambda record: field(record, self.text_field, str), self.limit)
    return [text for _, text in records]

  def run(self, model: Transformer, tokenizer: Tokenizer) -> Evaluation:
    """Metrics over all tokens, in nats and bits; rows of texts. Raises as `texts` and `rolling`."""
    texts = self.texts()
    documents = tokenizer.encode_batch(texts, allow_special=False)
    tokens, size = sum(map(len, documents)), sum(len(text.encode(errors="replace")) for text in texts)
    if not tokens:
      raise ValueError(f"{self.path}: the texts are empty")
    sums = rolling(model, documents, tokenizer.eos_id, self.window, self.stride, self.batch_tokens)
    rows = [
      {"text": text[:80], "tokens": len(ids), "loss": -total / max(len(ids), 1)}
      for text, ids, total in zip(texts, documents, sums)
    ]
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


def rolling(
  model: Transformer,
  documents: Sequence[Sequence[int]],
  start: int,
  window: int = 0,
  stride: int = 0,
  batch_tokens: int = BATCH_TOKENS,
) -> list[float]:
  """Sum of the log-probabilities of each document's tokens, in nats. The first token follows the token `start`.

  A document is read in windows. Each token is scored once: the first window scores all of its tokens, every other the
  `stride` tokens that come next (fewer at the end), its last. So all but the first `window` tokens have at least
  `window - stride + 1` tokens before them.

  Args:
    window: tokens that the model reads at a time; 0: its context, the most there is.
    stride: 0: as many as the window, as lm-evaluation-harness does it.

  Raises ValueError for a window or stride that is out of range.
  """
  context = context_length(model.config)
  window = window or context
  stride = stride or window
  if not 1 <= stride <= window <= context:
    raise ValueError(f"window={window}, stride={stride}: expected 1 <= stride <= window <= {context}, the context")
  pieces: list[list[int]] = []
  asked: list[int] = []
  owners: list[int] = []
  for owner, document in enumerate(documents):
    ids = [start, *document]  # token i of the document is ids[i + 1]
    done = 0
    while done < len(document):
      end = min(done + (stride if done else window), len(document))
      pieces.append(ids[max(0, end - window) : end + 1])
      asked.append(end - done)
      owners.append(owner)
      done = end
  sums = [0.0] * len(documents)
  for owner, scored in zip(owners, score(model, pieces, asked, batch_tokens)):
    sums[owner] += float(np.sum(scored.log_probabilities, dtype=np.float64))
  return sums
