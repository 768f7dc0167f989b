"""TeacherPredictions: the most likely next tokens under a model, a `Predictor` of `data/storage_error.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kernels.linear_cross_entropy.xla import chunks, joined, logits_of, split
from qwen3_jax.data.records import Predictions, predicted_tokens
from qwen3_jax.data.storage_error import Predicted
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, Transformer, from_parameters, parameters
from qwen3_jax.rollout.decoding_mesh import mesh_of
from qwen3_jax.rollout.generate import context_length
from qwen3_jax.sharding import batch_shards

_SHORTEST = 32  # of the buckets of lengths
Document = tuple[np.ndarray, np.ndarray | None]  # tokens, loss mask


@dataclasses.dataclass(frozen=True)
class TeacherPredictions:
  """Documents of similar length share a batch, padded to a power of two or the context: few programs are compiled.

  A document longer than the context is not predicted.

  Raises ValueError for a `top_k` that the vocabulary does not have.
  """

  model: Transformer
  vocab_size: int  # of the tokenizer: other rows of the model stand for nothing, and are left out of the distribution
  top_k: int
  name: str  # of the model, in manifests
  batch_tokens: int = 4096  # of a batch, unless one document has more

  def __post_init__(self):
    if not 1 <= self.top_k <= self.vocab_size:
      raise ValueError(f"top_k={self.top_k}, expected from 1 to {self.vocab_size}, the vocabulary")

  def __call__(self, documents: Sequence[Document]) -> list[Predicted | None]:
    context = context_length(self.model.config)
    found: list[Predicted | None] = [None] * len(documents)
    wanted = []
    for i, (tokens, mask) in enumerate(documents):
      if len(tokens) - 1 > context:
        continue
      if predicted_tokens(len(tokens), mask).any():
        wanted.append(i)
      else:
        nothing = np.zeros((0, self.top_k))
        found[i] = Predicted(Predictions(nothing.astype(np.int32), nothing.astype(np.float32)), np.zeros(0, np.float32))
    params = parameters(self.model)
    mesh = mesh_of(params)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
      # The next batch is on its way to the devices while one is read back.
      before: tuple[list[int], tuple[jax.Array, ...]] | None = None
      for rows, tokens in _batches(documents, wanted, self.batch_tokens, context, mesh):
        dispatched = rows, _most_likely(self.model.config, self.vocab_size, self.top_k, params, tokens)
        _collect(found, documents, before)
        before = dispatched
      _collect(found, documents, before)
    return found


def _collect(
  found: list[Predicted | None],
  documents: Sequence[Document],
  batch: tuple[list[int], tuple[jax.Array, ...]] | None,
) -> None:
  if batch is None:
    return
  ids, log_probabilities, outside = jax.device_get(batch[1])
  for row, i in enumerate(batch[0]):
    tokens, mask = documents[i]
    places = np.flatnonzero(predicted_tokens(len(tokens), mask)) - 1  # the token before predicts
    found[i] = Predicted(Predictions(ids[row, places], log_probabilities[row, places]), outside[row, places])


def _batches(
  documents: Sequence[Document], wanted: Sequence[int], batch_tokens: int, context: int, mesh: Mesh | None
) -> Iterator[tuple[list[int], np.ndarray]]:
  """Numbers of documents, and their tokens but the last: int32 [B, T], which the mesh divides."""
  shards = batch_shards(mesh)
  length = 1 if mesh is None or mesh.shape["context"] == 1 else 2 * mesh.shape["context"]
  by_length: dict[int, list[int]] = {}
  for i in wanted:
    needed = len(documents[i][0]) - 1
    T = _SHORTEST
    while T < needed:
      T *= 2
    by_length.setdefault(-(-min(T, context) // length) * length, []).append(i)
  for T, members in sorted(by_length.items()):
    B = -(-max(1, batch_tokens // T) // shards) * shards
    for start in range(0, len(members), B):
      rows = members[start : start + B]
      tokens = np.zeros((B, T), np.int32)
      for row, i in enumerate(rows):
        tokens[row, : len(documents[i][0]) - 1] = documents[i][0][:-1]
      yield rows, tokens


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _most_likely(
  config: ModelConfig, vocab_size: int, k: int, params: Parameters, tokens: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Ids int32 and log-probabilities float32 [B, T, k], and the probability of all others, float32 [B, T].

  Logits are there a chunk of positions at a time.
  """
  hidden = from_parameters(config, params).hidden(tokens)
  head = hidden.head.astype(hidden.final.dtype)[:, :vocab_size]

  def chunk(h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits = logits_of(h, head)
    values, ids = jax.lax.top_k(logits, k)
    log_probabilities = jnp.minimum(values - jax.nn.logsumexp(logits, axis=-1, keepdims=True), 0.0)
    return ids, log_probabilities, jnp.maximum(1.0 - jnp.sum(jnp.exp(log_probabilities), axis=-1), 0.0)

  B, T = tokens.shape
  n = chunks(B, T, vocab_size)
  ids, log_probabilities, outside = jax.tree.map(joined, jax.lax.map(chunk, split(hidden.final, n)))
  return ids, log_probabilities, outside
