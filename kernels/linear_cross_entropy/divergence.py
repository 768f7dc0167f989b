"""Kullback-Leibler divergence between the predictions of two models, over the whole vocabulary, in chunks of tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels.linear_cross_entropy import xla


def _log_z(logits: jax.Array, axis: str | None) -> jax.Array:
  """Log of the sum of exp(logit) over the last axis of [B, t, V], and over the devices of `axis`."""
  peak = jnp.max(logits, axis=-1)
  if axis:
    peak = jax.lax.pmax(peak, axis)
  total = jnp.sum(jnp.exp(logits - peak[..., None]), axis=-1)
  return peak + jnp.log(jax.lax.psum(total, axis) if axis else total)


def _log_probabilities(hidden, head, scale: float, axis: str | None) -> jax.Array:
  logits = xla.logits_of(hidden, head) * scale
  return logits - _log_z(logits, axis)[..., None]


def _chunks(hidden: jax.Array, head: jax.Array) -> int:
  B, T, _ = hidden.shape
  return xla.chunks(B, T, 2 * head.shape[1])  # two models' logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def divergence(hidden, head, teacher_hidden, teacher_head, reverse: bool, scale: float, axis: str | None) -> jax.Array:
  """Float32 [B, T]; `axis` is the mesh axis over which both vocabularies are split. Else as `api.divergence`."""

  def chunk(xs):
    ours = _log_probabilities(xs[0], head, scale, axis)
    theirs = _log_probabilities(xs[1], teacher_head, scale, axis)
    terms = jnp.exp(ours) * (ours - theirs) if reverse else jnp.exp(theirs) * (theirs - ours)
    total = jnp.sum(terms, axis=-1)
    return jax.lax.psum(total, axis) if axis else total

  n = _chunks(hidden, head)
  return xla.joined(jax.lax.map(chunk, (xla.split(hidden, n), xla.split(teacher_hidden, n))))


def _forward(hidden, head, teacher_hidden, teacher_head, reverse, scale, axis):
  found = divergence(hidden, head, teacher_hidden, teacher_head, reverse, scale, axis)
  return found, (hidden, head, teacher_hidden, teacher_head, found)


def _backward(reverse, scale, axis, residuals, gradient):
  hidden, head, teacher_hidden, teacher_head, found = residuals
  if axis:  # every device has the same divergences, and a part of their cotangents
    gradient = jax.lax.psum(gradient, axis)

  def to_logits(h, teacher_h, value, cotangent):
    ours = _log_probabilities(h, head, scale, axis)
    theirs = _log_probabilities(teacher_h, teacher_head, scale, axis)
    probabilities = jnp.exp(ours)
    of_value = probabilities * (ours - theirs - value[..., None]) if reverse else probabilities - jnp.exp(theirs)
    return of_value * (scale * cotangent[..., None])

  rest = teacher_hidden, found, gradient
  to_student = xla.gradients(to_logits, _chunks(hidden, head), hidden, head, *rest)
  return *to_student, jnp.zeros_like(teacher_hidden), jnp.zeros_like(teacher_head)


divergence.defvjp(_forward, _backward)
