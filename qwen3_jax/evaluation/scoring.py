"""Log-probabilities of given tokens, many sequences at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, Transformer, from_parameters, parameters
from qwen3_jax.rollout.decoding_mesh import mesh_of

_SHORTEST = 32  # of the buckets of lengths
_BATCH_TOKENS = 4096  # of a batch
_LOGIT_ROWS = 512  # whose logits are there at a time


class Scored(NamedTuple):
  """Of the tokens asked for, [tokens]."""

  log_probabilities: np.ndarray  # float32
  greedy: np.ndarray  # bool: whether the model would have chosen the token


def score(model: Transformer, sequences: Sequence[Sequence[int]], asked: Sequence[int]) -> list[Scored]:
  """Scores the last `asked[i]` tokens of each sequence, given what precedes them in it; at most all but its first.

  Sequences of similar length share a batch, padded to a power of two: few programs are compiled.
  Raises ValueError for a sequence that is too short for what is asked.
  """
  for i, (sequence, count) in enumerate(zip(sequences, asked)):
    if not 0 <= count < max(len(sequence), 1):
      raise ValueError(f"sequence {i} has {len(sequence)} tokens; {count} of them cannot be scored")
  params = parameters(model)
  mesh = mesh_of(params)
  found: list[Scored | None] = [None] * len(sequences)
  for rows, tokens in _batches(sequences):
    arguments = (model.config, params, jnp.asarray(tokens))
    if mesh is None:
      log_probabilities, greedy = jax.device_get(_score(*arguments))
    else:
      with jax.set_mesh(mesh):
        log_probabilities, greedy = jax.device_get(_score(*arguments))
    for row, i in enumerate(rows):
      part = slice(len(sequences[i]) - 1 - asked[i], len(sequences[i]) - 1)
      found[i] = Scored(log_probabilities[row, part], greedy[row, part])
  return [scored for scored in found if scored is not None]


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
  """Numbers of sequences, and their tokens int32 [B, T]."""
  by_length: dict[int, list[int]] = {}
  for i, sequence in enumerate(sequences):
    T = _SHORTEST
    while T < len(sequence):
      T *= 2
    by_length.setdefault(T, []).append(i)
  for T, members in sorted(by_length.items()):
    B = max(1, _BATCH_TOKENS // T)
    for start in range(0, len(members), B):
      rows = members[start : start + B]
      tokens = np.zeros((B, T), np.int32)
      for row, i in enumerate(rows):
        tokens[row, : len(sequences[i])] = sequences[i]
      yield rows, tokens


@functools.partial(jax.jit, static_argnums=0)
def _score(config: ModelConfig, params: Parameters, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """tokens [B, T] -> float32 and bool [B, T - 1], of tokens after the first. What follows a token changes nothing."""
  model = from_parameters(config, params)
  B, T = tokens.shape
  hidden = model.hidden(tokens).final[:, :-1].reshape(B * (T - 1), -1)
  targets = tokens[:, 1:].reshape(-1)
  padding = -hidden.shape[0] % _LOGIT_ROWS
  pieces = lambda x: jnp.pad(x, ((0, padding), *((0, 0) for _ in x.shape[1:]))).reshape(-1, _LOGIT_ROWS, *x.shape[1:])

  def of_rows(xs):
    logits = model.logits(xs[0])
    chosen = jnp.take_along_axis(logits, xs[1][:, None], axis=1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == xs[1]

  scored = jax.lax.map(of_rows, (pieces(hidden), pieces(targets)))
  log_probabilities, greedy = (x.reshape(-1)[: B * (T - 1)].reshape(B, T - 1) for x in scored)
  return log_probabilities, greedy
