"""Log-probabilities of given tokens, many sequences at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from kernels.linear_cross_entropy.head import gathered
from kernels.linear_cross_entropy.tokens import TokenStatistics, token_statistics
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, Transformer, from_parameters, parameters
from qwen3_jax.rollout.decoding_mesh import mesh_of
from qwen3_jax.rollout.generate import context_length
from qwen3_jax.sharding import TOKENS, array_spec, batch_mesh, batch_shards, entry_axes, on_shards

BATCH_TOKENS = 4096  # of a batch, unless one sequence has more
_SHORTEST = 32  # of the buckets of lengths


class Scored(NamedTuple):
  """Of the tokens asked for, [tokens]."""

  log_probabilities: np.ndarray  # float32, in nats
  greedy: np.ndarray  # bool: whether no token has a larger logit


def score(
  model: Transformer, sequences: Sequence[Sequence[int]], asked: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> list[Scored]:
  """Scores the last `asked[i]` tokens of each sequence, given what precedes them in it; at most all but its first.

  Sequences of similar length share a batch of about `batch_tokens` tokens, padded to a power of two or the context:
  few programs are compiled. Raises ValueError for a sequence that is too short for what is asked.
  """
  for i, (sequence, count) in enumerate(zip(sequences, asked, strict=True)):
    if not 0 <= count < max(len(sequence), 1):
      raise ValueError(f"sequence {i} has {len(sequence)} tokens; {count} of them cannot be scored")
  params = parameters(model)
  mesh = mesh_of(params)
  found = [Scored(np.zeros(0, np.float32), np.zeros(0, bool))] * len(sequences)
  wanted = [i for i, count in enumerate(asked) if count]
  with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
    # The next batch is on its way to the devices while one is read back.
    before: tuple[list[int], tuple[jax.Array, jax.Array]] | None = None
    for rows, tokens, targets in _batches(sequences, wanted, batch_tokens, context_length(model.config), mesh):
      dispatched = rows, _score(model.config, params, tokens, targets)
      _collect(found, sequences, asked, before)
      before = dispatched
    _collect(found, sequences, asked, before)
  return found


def _collect(
  found: list[Scored],
  sequences: Sequence[Sequence[int]],
  asked: Sequence[int],
  batch: tuple[list[int], tuple[jax.Array, jax.Array]] | None,
) -> None:
  if batch is None:
    return
  log_probabilities, greedy = jax.device_get(batch[1])
  for row, i in enumerate(batch[0]):
    end = len(sequences[i]) - 1
    part = slice(end - asked[i], end)
    found[i] = Scored(log_probabilities[row, part], greedy[row, part])


def _batches(
  sequences: Sequence[Sequence[int]], wanted: Sequence[int], batch_tokens: int, context: int, mesh: Mesh | None
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
  """Numbers of sequences; their tokens but the last, and but the first: int32 [B, T], which the mesh divides."""
  shards = batch_shards(mesh)
  length = 1 if mesh is None or mesh.shape["context"] == 1 else 2 * mesh.shape["context"]
  by_length: dict[int, list[int]] = {}
  for i in wanted:
    needed = len(sequences[i]) - 1
    T = _SHORTEST
    while T < needed:
      T *= 2
    T = context if needed <= context < T else T
    by_length.setdefault(_multiple(T, length), []).append(i)
  for T, members in sorted(by_length.items()):
    B = _multiple(max(1, batch_tokens // T), shards)
    for start in range(0, len(members), B):
      rows = members[start : start + B]
      tokens, targets = np.zeros((2, B, T), np.int32)
      for row, i in enumerate(rows):
        tokens[row, : len(sequences[i]) - 1] = sequences[i][:-1]
        targets[row, : len(sequences[i]) - 1] = sequences[i][1:]
      yield rows, tokens, targets


def _multiple(n: int, of: int) -> int:
  """The first multiple from n on."""
  return -(-n // of) * of


@functools.partial(jax.jit, static_argnums=0)
def _score(
  config: ModelConfig, params: Parameters, tokens: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of targets [B, T], float32, and whether each is the model's choice. Padding changes nothing."""
  hidden = from_parameters(config, params).hidden(tokens)
  found = _statistics(hidden.final, hidden.head.astype(hidden.final.dtype), targets)
  return found.target - found.log_z, found.target >= found.peak


def _statistics(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> TokenStatistics:
  """Of hidden [B, T, D] with the head [D, V], on each device's own tokens; logits are there a chunk at a time.

  As `kernels.linear_cross_entropy.api.token_log_probabilities`, which does not tell the largest logit.
  """
  mesh = batch_mesh(*targets.shape)
  if mesh is None:
    return token_statistics(hidden, head, targets, 1.0, None)
  spec = array_spec(("embed", "vocab"), head.shape, mesh)
  embed, vocabulary = spec

  def local(hidden, head, targets):
    return token_statistics(hidden, gathered(head, entry_axes(embed)), targets, 1.0, vocabulary)

  mapped = on_shards(local, mesh, in_specs=(TOKENS, spec, TOKENS), out_specs=TOKENS)
  return mapped(hidden, head, targets)
