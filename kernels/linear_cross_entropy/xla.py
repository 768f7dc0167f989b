"""Cross-entropy for any XLA backend, a chunk of positions at a time.

The loss is a sum, so its cotangent is one scalar: the forward pass already makes the gradients of hidden and head, and
the backward pass multiplies them by that scalar. Logits are made once: three matmuls, no recomputation.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from kernels.collectives import all_gather, reduce_scatter
from kernels.ordering import after

CHUNK_BYTES = 64 * 2**20  # float32 logits held at a time; half of it costs 6% on CPU
_SCATTERS = 8  # at most
_MIN_TOKENS = 512  # of a chunk, whatever the vocabulary: fewer leave an accelerator waiting for the head's bytes


def _chunks(B: int, T: int, V: int) -> int:
  """Number of chunks along T, a divisor of T."""
  positions = max(1, max(CHUNK_BYTES // (4 * V), _MIN_TOKENS) // B)
  return next(n for n in range(1, T + 1) if T % n == 0 and T // n <= positions)


def _chunk_loss(hidden, head, targets, weights, z_loss, axis):
  """hidden [B, t, D] -> loss, correct, and what the gradients need."""
  logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)
  peak = jnp.max(logits, axis=-1)
  if axis:
    peak = jax.lax.pmax(peak, axis)
  exponentials = jnp.exp(logits - peak[..., None])
  normaliser = jnp.sum(exponentials, axis=-1)
  row = _local(targets, head, axis)
  target_logit = jnp.take_along_axis(logits, jnp.clip(row, 0, head.shape[1] - 1)[..., None], axis=-1)[..., 0]
  if axis:
    target_logit = jnp.where((row >= 0) & (row < head.shape[1]), target_logit, 0.0)
    normaliser, target_logit = jax.lax.psum((normaliser, target_logit), axis)
  log_z = peak + jnp.log(normaliser)
  loss = jnp.sum(weights * (log_z - target_logit + z_loss * jnp.square(log_z)))
  correct = jnp.sum(weights * (target_logit >= peak))
  return loss, correct, exponentials, normaliser, log_z


def _local(targets, head, axis):
  """Columns of this shard's part of the vocabulary; elsewhere when a target is another shard's."""
  return targets - jax.lax.axis_index(axis) * head.shape[1] if axis else targets


def _split(x, n: int):
  """[B, T, ...] -> [n, B, T/n, ...]"""
  return x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:]).swapaxes(0, 1)


def _forward(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes):
  B, T = targets.shape
  n = _chunks(B, T, head.shape[1])
  head = all_gather(head, embed_axes, 0)

  def chunk(sums, xs):
    loss, correct, *_ = _chunk_loss(xs[0], head, xs[1], xs[2], z_loss, vocabulary_axis)
    return (sums[0] + loss, sums[1] + correct), None

  zero = jnp.zeros((), jnp.float32)
  sums, _ = jax.lax.scan(chunk, (zero, zero), tuple(_split(x, n) for x in (hidden, targets, weights)))
  return sums


def _forward_with_gradients(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes):
  B, T, D = hidden.shape
  V = head.shape[1]
  n = _chunks(B, T, V)
  head = all_gather(head, embed_axes, 0)

  def chunk(carry, xs):
    loss_sum, correct_sum, head_gradient = carry
    h, target, weight = xs
    loss, correct, exponentials, normaliser, log_z = _chunk_loss(h, head, target, weight, z_loss, vocabulary_axis)
    # d loss / d logits = w * (p * (1 + 2 z log Z) - onehot)
    scale = weight * (1.0 + 2.0 * z_loss * log_z) / normaliser
    onehot = _local(target, head, vocabulary_axis)[..., None] == jnp.arange(V)
    logit_gradient = (exponentials * scale[..., None] - jnp.where(onehot, weight[..., None], 0.0)).astype(h.dtype)
    hidden_gradient = jnp.einsum("btv,dv->btd", logit_gradient, head)
    head_gradient += jnp.einsum("btd,btv->dv", h, logit_gradient, preferred_element_type=jnp.float32)
    return (loss_sum + loss, correct_sum + correct, head_gradient), hidden_gradient

  zero = jnp.zeros((), jnp.float32)
  carry = (zero, zero, jnp.zeros((D, V), jnp.float32))
  carry, hidden_gradient = jax.lax.scan(chunk, carry, tuple(_split(x, n) for x in (hidden, targets, weights)))
  loss, correct, head_gradient = carry
  hidden_gradient = hidden_gradient.swapaxes(0, 1).reshape(B, T, D)
  if embed_axes:
    head_gradient = _scattered(head_gradient, embed_axes, head.dtype)
    # The backward pass of the layers starts when the whole head's gradient is gone.
    return (loss, correct), (after(hidden_gradient, head_gradient), head_gradient)
  # Kept apart from the transpose that tied embeddings need, in whose layout XLA:CPU multiplies slowly.
  return (loss, correct), (hidden_gradient, jax.lax.optimization_barrier(head_gradient.astype(head.dtype)))


def _scattered(head_gradient, embed_axes, dtype):
  """Sums [D, V] over the shards of `embed_axes`, each of which gets its rows [D / n, V].

  Some columns at a time, under a loop: XLA on TPU else makes an all-reduce of the whole and cuts it in every use.
  """
  D, V = head_gradient.shape
  width = V // math.gcd(V, _SCATTERS)

  def scatter(start):
    columns = jax.lax.dynamic_slice(head_gradient, (0, start), (D, width)).astype(dtype)
    return reduce_scatter(columns, embed_axes, 0)

  parts = jax.lax.map(scatter, jnp.arange(0, V, width))
  return parts.swapaxes(0, 1).reshape(-1, V)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def linear_cross_entropy(hidden, head, targets, weights, z_loss, vocabulary_axis=None, embed_axes=()):
  """As `api.linear_cross_entropy`."""
  return _forward(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes)


def _backward(z_loss, vocabulary_axis, embed_axes, gradients, cotangents):
  cotangent = cotangents[0]
  if vocabulary_axis:  # every shard of the vocabulary has the same loss, and a part of its cotangent
    cotangent = jax.lax.psum(cotangent, vocabulary_axis)
  return (*((gradient * cotangent).astype(gradient.dtype) for gradient in gradients), None, None)


linear_cross_entropy.defvjp(_forward_with_gradients, _backward)
