"""Cross-entropy for any XLA backend, a chunk of positions at a time.

The loss is a sum, so its cotangent is one scalar: the forward pass already makes the gradients of hidden and head, and
the backward pass multiplies them by that scalar. Logits are made once: three matmuls, no recomputation.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

CHUNK_BYTES = 64 * 2**20  # float32 logits held at a time on each batch shard; half of it costs 6% on CPU


def _chunks(B: int, T: int, V: int) -> int:
  """Number of chunks along T, a divisor of T."""
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1
  if not mesh.empty:
    for axis in ("data", "fsdp", "expert"):
      shards *= mesh.shape.get(axis, 1)
  positions = max(1, CHUNK_BYTES * shards // (4 * V * B))
  return next(n for n in range(1, T + 1) if T % n == 0 and T // n <= positions)


def _chunk_loss(hidden, head, targets, weights, z_loss):
  """hidden [B, t, D] -> loss, correct, and what the gradients need."""
  logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)
  peak = jnp.max(logits, axis=-1)
  exponentials = jnp.exp(logits - peak[..., None])
  normaliser = jnp.sum(exponentials, axis=-1)
  log_z = peak + jnp.log(normaliser)
  target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = jnp.sum(weights * (log_z - target_logit + z_loss * jnp.square(log_z)))
  correct = jnp.sum(weights * (target_logit >= peak))
  return loss, correct, exponentials, normaliser, log_z


def _split(x, n: int):
  """[B, T, ...] -> [n, B, T/n, ...]"""
  return x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:]).swapaxes(0, 1)


def _forward(hidden, head, targets, weights, z_loss):
  B, T = targets.shape
  n = _chunks(B, T, head.shape[1])

  def chunk(sums, xs):
    loss, correct, *_ = _chunk_loss(xs[0], head, xs[1], xs[2], z_loss)
    return (sums[0] + loss, sums[1] + correct), None

  zero = jnp.zeros((), jnp.float32)
  sums, _ = jax.lax.scan(chunk, (zero, zero), tuple(_split(x, n) for x in (hidden, targets, weights)))
  return sums


def _forward_with_gradients(hidden, head, targets, weights, z_loss):
  B, T, D = hidden.shape
  V = head.shape[1]
  n = _chunks(B, T, V)

  def chunk(carry, xs):
    loss_sum, correct_sum, head_gradient = carry
    h, target, weight = xs
    loss, correct, exponentials, normaliser, log_z = _chunk_loss(h, head, target, weight, z_loss)
    # d loss / d logits = w * (p * (1 + 2 z log Z) - onehot)
    scale = weight * (1.0 + 2.0 * z_loss * log_z) / normaliser
    onehot = target[..., None] == jnp.arange(V)
    logit_gradient = (exponentials * scale[..., None] - jnp.where(onehot, weight[..., None], 0.0)).astype(h.dtype)
    hidden_gradient = jnp.einsum("btv,dv->btd", logit_gradient, head)
    head_gradient += jnp.einsum("btd,btv->dv", h, logit_gradient, preferred_element_type=jnp.float32)
    return (loss_sum + loss, correct_sum + correct, head_gradient), hidden_gradient

  zero = jnp.zeros((), jnp.float32)
  carry = (zero, zero, jnp.zeros((D, V), jnp.float32))
  carry, hidden_gradient = jax.lax.scan(chunk, carry, tuple(_split(x, n) for x in (hidden, targets, weights)))
  loss, correct, head_gradient = carry
  hidden_gradient = hidden_gradient.swapaxes(0, 1).reshape(B, T, D)
  # Kept apart from the transpose that tied embeddings need, in whose layout XLA:CPU multiplies slowly.
  head_gradient = jax.lax.optimization_barrier(head_gradient.astype(head.dtype))
  return (loss, correct), (hidden_gradient, head_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def linear_cross_entropy(hidden, head, targets, weights, z_loss):
  """As `api.linear_cross_entropy`."""
  return _forward(hidden, head, targets, weights, z_loss)


def _backward(z_loss, gradients, cotangents):
  return (*((gradient * cotangents[0]).astype(gradient.dtype) for gradient in gradients), None, None)


linear_cross_entropy.defvjp(_forward_with_gradients, _backward)
