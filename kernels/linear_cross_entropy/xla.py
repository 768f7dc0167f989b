"""Softmax statistics of a linear head for any XLA backend, a chunk of positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK_BYTES = 64 * 2**20  # float32 logits held at a time; half of it costs 6% on CPU
_MIN_TOKENS = 512  # of a chunk, whatever the vocabulary: fewer leave an accelerator waiting for the head's bytes


class Statistics(NamedTuple):
  """Of the logits of each token, float32 [B, T]."""

  target: jax.Array  # the target's logit, or 0 if it is not in this part of the vocabulary
  peak: jax.Array  # the largest
  total: jax.Array  # sum of exp(logit - peak)
  mean: jax.Array  # of the logits, each weighted with its probability


def chunks(B: int, T: int, V: int) -> int:
  """Number of chunks along T, a divisor of T."""
  positions = max(1, max(CHUNK_BYTES // (4 * V), _MIN_TOKENS) // B)
  return next(n for n in range(1, T + 1) if T % n == 0 and T // n <= positions)


def split(x: jax.Array, n: int) -> jax.Array:
  """[B, T, ...] -> [n, B, T/n, ...]"""
  return x.reshape(x.shape[0], n, x.shape[1] // n, *x.shape[2:]).swapaxes(0, 1)


def joined(x: jax.Array) -> jax.Array:
  """[n, B, t, ...] -> [B, n * t, ...]"""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def logits_of(hidden: jax.Array, head: jax.Array) -> jax.Array:
  return jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)


def statistics(logits: jax.Array, targets: jax.Array) -> tuple[Statistics, jax.Array]:
  """logits [B, T, V]; and exp(logits - peak)."""
  V = logits.shape[-1]
  peak = jnp.max(logits, axis=-1)
  exponentials = jnp.exp(logits - peak[..., None])
  total = jnp.sum(exponentials, axis=-1)
  here = jnp.take_along_axis(logits, jnp.clip(targets, 0, V - 1)[..., None], axis=-1)[..., 0]
  target = jnp.where((targets >= 0) & (targets < V), here, 0.0)
  return Statistics(target, peak, total, jnp.sum(exponentials * logits, axis=-1) / total), exponentials


def forward(hidden, head, targets, scale: float) -> Statistics:
  """Statistics of logits scale * (hidden [B, T, D] times head [D, V]); targets int32 [B, T], columns of head."""
  (B, T), V = targets.shape, head.shape[1]

  def chunk(xs):
    h, target = xs
    return statistics(logits_of(h, head) * scale, target)[0]

  n = chunks(B, T, V)
  return jax.tree.map(joined, jax.lax.map(chunk, (split(hidden, n), split(targets, n))))


def backward(hidden, head, targets, scale: float, log_z, constant, slope, of_target) -> tuple[jax.Array, jax.Array]:
  """Gradients of hidden and head for a logit's gradient of probability * (constant + slope * logit), and of_target
  more for the target's. The last four: float32 [B, T]; log_z: log of the sum of exp(logit) over the vocabulary."""
  (B, T), V = targets.shape, head.shape[1]

  def to_logits(h, target, log_z, constant, slope, of_target):
    logits = logits_of(h, head) * scale
    gradient = jnp.exp(logits - log_z[..., None]) * (constant[..., None] + slope[..., None] * logits)
    return (gradient + jnp.where(target[..., None] == jnp.arange(V), of_target[..., None], 0.0)) * scale

  return gradients(to_logits, chunks(B, T, V), hidden, head, targets, log_z, constant, slope, of_target)


def gradients(to_logits: Callable[..., jax.Array], n: int, hidden, head, *rest) -> tuple[jax.Array, jax.Array]:
  """Of hidden [B, T, D] and head [D, V], where `to_logits` gives the float32 gradient of the logits of one of n chunks
  of hidden and `rest` [B, T, ...]."""

  def chunk(head_gradient, xs):
    h = xs[0]
    gradient = to_logits(*xs).astype(h.dtype)
    head_gradient += jnp.einsum("btd,btv->dv", h, gradient, preferred_element_type=jnp.float32)
    return head_gradient, jnp.einsum("btv,dv->btd", gradient, head)

  xs = tuple(split(x, n) for x in (hidden, *rest))
  head_gradient, hidden_gradient = jax.lax.scan(chunk, jnp.zeros(head.shape, jnp.float32), xs)
  return joined(hidden_gradient), head_gradient.astype(head.dtype)
