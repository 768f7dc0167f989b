"""The loss with its gradients.

The loss is a sum, so its cotangent is one scalar: the forward pass already makes the gradients of hidden and head, and
the backward pass multiplies them by that scalar. With chunks of logits in memory (`_in_chunks`) logits are made once:
three products, no recomputation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernels.collectives import all_gather
from kernels.linear_cross_entropy import pallas_tpu, xla
from kernels.linear_cross_entropy.head import scattered
from kernels.linear_cross_entropy.tokens import TokenStatistics, local_columns, merged, token_statistics
from kernels.ordering import after


def _sums(found: TokenStatistics, weights, z_loss) -> tuple[jax.Array, jax.Array]:
  loss = jnp.sum(weights * (found.log_z - found.target + z_loss * jnp.square(found.log_z)))
  return loss, jnp.sum(weights * (found.target >= found.peak))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def linear_cross_entropy(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes):
  """As `api.linear_cross_entropy`."""
  head = all_gather(head, embed_axes, 0)
  return _sums(token_statistics(hidden, head, targets, 1.0, vocabulary_axis), weights, z_loss)


def _in_chunks(z_loss, axis, hidden, head, targets, weights):
  """Loss, correct, gradients of hidden [B, T, D] and head [D, V], on one device's part of the vocabulary."""
  (B, T, D), V = hidden.shape, head.shape[1]

  def chunk(carry, xs):
    loss_sum, correct_sum, head_gradient = carry
    h, target, weight = xs
    target = local_columns(target, head, axis)
    local, exponentials = xla.statistics(xla.logits_of(h, head), target)
    found = merged(local, axis)
    loss, correct = _sums(found, weight, z_loss)
    # d loss / d logit = w * (p * (1 + 2 z log Z) - onehot)
    scale = weight * (1.0 + 2.0 * z_loss * found.log_z) * jnp.exp(local.peak - found.log_z)
    onehot = target[..., None] == jnp.arange(V)
    to_logits = (exponentials * scale[..., None] - jnp.where(onehot, weight[..., None], 0.0)).astype(h.dtype)
    head_gradient += jnp.einsum("btd,btv->dv", h, to_logits, preferred_element_type=jnp.float32)
    return (loss_sum + loss, correct_sum + correct, head_gradient), jnp.einsum("btv,dv->btd", to_logits, head)

  zero = jnp.zeros((), jnp.float32)
  n = xla.chunks(B, T, V)
  xs = tuple(xla.split(x, n) for x in (hidden, targets, weights))
  (loss, correct, to_head), to_hidden = jax.lax.scan(chunk, (zero, zero, jnp.zeros((D, V), jnp.float32)), xs)
  return loss, correct, xla.joined(to_hidden), to_head


def _by_kernels(z_loss, axis, hidden, head, targets, weights):
  """As `_in_chunks`."""
  columns = local_columns(targets, head, axis)
  found = merged(pallas_tpu.forward(hidden, head, columns, 1.0), axis)
  constant = weights * (1.0 + 2.0 * z_loss * found.log_z)
  of_logits = found.log_z, constant, jnp.zeros_like(constant), -weights
  return *_sums(found, weights, z_loss), *pallas_tpu.backward(hidden, head, columns, 1.0, *of_logits)


def _forward(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes):
  def with_gradients(implementation, hidden, head, targets, weights):
    whole = all_gather(head, embed_axes, 0)
    *sums, to_hidden, to_head = implementation(z_loss, vocabulary_axis, hidden, whole, targets, weights)
    return *sums, to_hidden, scattered(to_head, embed_axes, head.dtype)

  chosen: dict[str, Callable] = {"default": functools.partial(with_gradients, _in_chunks)}
  if pallas_tpu.supported(hidden, head):
    chosen["tpu"] = functools.partial(with_gradients, _by_kernels)
  loss, correct, to_hidden, to_head = jax.lax.platform_dependent(hidden, head, targets, weights, **chosen)
  if embed_axes:  # the backward pass of the layers starts when the whole head's gradient is gone
    return (loss, correct), (after(to_hidden, to_head), to_head)
  # Kept apart from the transpose that tied embeddings need, in whose layout XLA:CPU multiplies slowly.
  return (loss, correct), (to_hidden, jax.lax.optimization_barrier(to_head))


def _backward(z_loss, vocabulary_axis, embed_axes, gradients, cotangents):
  cotangent = cotangents[0]
  if vocabulary_axis:  # every device has the same loss, and a part of its cotangent
    cotangent = jax.lax.psum(cotangent, vocabulary_axis)
  return (*((gradient * cotangent).astype(gradient.dtype) for gradient in gradients), None, None)


linear_cross_entropy.defvjp(_forward, _backward)
