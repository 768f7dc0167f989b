"""What objectives need of a model's final hidden states, on each device's own tokens.

On a mesh the head is gathered once, its gradient is added up on each device and scattered once; over `tensor` the
vocabulary stays split.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from kernels.linear_cross_entropy import api
from kernels.linear_cross_entropy.head import gathered
from qwen3_jax.sharding import TOKEN_AXES, TOKENS, array_spec, batch_mesh, entry_axes, on_shards


def token_loss(
  hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
  """`linear_cross_entropy` of hidden [B, T, D] with the head [D, V]: sums over the global batch."""

  def local(hidden, head, targets, weights, vocabulary_axis=None, embed_axes=()):
    return api.linear_cross_entropy(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes)

  return _on_own_tokens(local, hidden, head, (targets, weights.astype(jnp.float32)), summed=True)


def token_log_probabilities(
  hidden: jax.Array, head: jax.Array, targets: jax.Array, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target and entropy of each prediction, float32 [B, T], both differentiable."""

  def local(hidden, head, targets, vocabulary_axis=None, embed_axes=()):
    return api.token_log_probabilities(hidden, head, targets, temperature, vocabulary_axis, embed_axes)

  return _on_own_tokens(local, hidden, head, (targets,), summed=False)


def token_divergence(
  hidden: jax.Array,
  head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  kind: str,
  mix: float,
  temperature: float,
  vocabulary: int,
) -> tuple[jax.Array, jax.Array]:
  """`divergence` and the student's entropy, float32 [B, T]; the teacher has a width, and so a split, of its own."""
  mesh = batch_mesh(*hidden.shape[:2])
  teacher_spec = P() if mesh is None else array_spec(("embed", "vocab"), teacher_head.shape, mesh)
  teacher_axes = () if mesh is None else entry_axes(teacher_spec[0])

  def local(hidden, head, teacher_hidden, teacher_head, vocabulary_axis=None, embed_axes=()):
    heads = gathered(head, embed_axes), gathered(teacher_head, teacher_axes)
    options = {"mix": mix, "temperature": temperature, "vocabulary": vocabulary, "vocabulary_axis": vocabulary_axis}
    return api.divergence(hidden, heads[0], teacher_hidden, heads[1], kind, **options)

  arrays = (teacher_hidden, teacher_head)
  return _on_own_tokens(local, hidden, head, arrays, summed=False, specs=(TOKENS, teacher_spec))


def token_top_divergence(hidden: jax.Array, head: jax.Array, ids: jax.Array, log_probabilities: jax.Array) -> jax.Array:
  """`top_divergence` of each token, float32 [B, T]."""

  def local(hidden, head, ids, log_probabilities, vocabulary_axis=None, embed_axes=()):
    split = {"vocabulary_axis": vocabulary_axis, "embed_axes": embed_axes}
    return api.top_divergence(hidden, head, ids, log_probabilities, **split)

  return _on_own_tokens(local, hidden, head, (ids, log_probabilities), summed=False)


def _on_own_tokens(
  local: Callable,
  hidden: jax.Array,
  head: jax.Array,
  others: tuple[jax.Array, ...],
  summed: bool,
  specs: tuple[P, ...] | None = None,
):
  """`local(hidden, head, *others)` of each device's part; results are sums over tokens, or [B, T].

  `specs`: how the others are split; None: they are of tokens.
  """
  head = head.astype(hidden.dtype)
  mesh = batch_mesh(*hidden.shape[:2])
  if mesh is None:
    return local(hidden, head, *others)
  spec = array_spec(("embed", "vocab"), head.shape, mesh)
  embed, vocabulary = spec
  split = {"embed_axes": entry_axes(embed), "vocabulary_axis": vocabulary}

  def of_device(*arrays):
    found = local(*arrays, **split)
    return jax.lax.psum(found, TOKEN_AXES) if summed else found

  in_specs = (TOKENS, spec, *(specs or (TOKENS,) * len(others)))
  out_specs = P() if summed else TOKENS
  mapped = on_shards(of_device, mesh, in_specs=in_specs, out_specs=out_specs)
  return mapped(hidden, head, *others)
