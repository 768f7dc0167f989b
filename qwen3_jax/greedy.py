"""Greedy continuation by running the whole sequence again for every token: for short samples during training."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, from_parameters
from qwen3_jax.sharding import current_mesh


@functools.partial(jax.jit, static_argnums=(0,))
def _continue(config: ModelConfig, params: Parameters, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
  """tokens int32 [B, T] holds `lengths` [B] real tokens a row; the rest is filled in."""
  model = from_parameters(config, params)
  B, T = tokens.shape
  rows = jnp.arange(B)

  def fill(t, tokens):
    final = model.hidden(tokens).final[:, t - 1]  # causal: what follows t - 1 does not matter
    chosen = jnp.argmax(model.logits(final), axis=-1).astype(jnp.int32)
    return tokens.at[rows, t].set(jnp.where(t < lengths, tokens[:, t], chosen))

  filled = jax.lax.fori_loop(jnp.min(lengths), T, fill, tokens)
  mesh = current_mesh()
  return filled if mesh is None else jax.lax.with_sharding_constraint(filled, P())  # whole on every process


def greedy_continuation(
  config: ModelConfig, params: Parameters, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
  """The `new_tokens` most likely tokens, one after another, that follow each prompt of token ids.

  Raises ValueError when a prompt is empty.
  """
  if not all(prompts):
    raise ValueError("greedy_continuation: a prompt has no tokens")
  lengths = np.array([len(prompt) for prompt in prompts], np.int32)
  tokens = np.zeros((len(prompts), int(lengths.max()) + new_tokens), np.int32)
  for row, prompt in zip(tokens, prompts):
    row[: len(prompt)] = prompt
  filled = np.asarray(_continue(config, params, tokens, lengths))
  return [row[length : length + new_tokens].tolist() for row, length in zip(filled, lengths)]
