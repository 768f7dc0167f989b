"""Divergences between the predictions of two models, over the whole vocabulary, in chunks of tokens."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from kernels.linear_cross_entropy import xla

KINDS = ("forward", "reverse", "jsd")
NOWHERE = -1e30  # the logit of a column that stands for no token


@dataclasses.dataclass(frozen=True)
class Predictions:
  """How the logits of a head's columns become log-probabilities."""

  scale: float  # of logits
  vocabulary: int  # columns that stand for tokens, over all devices of `axis`
  axis: str | None  # the mesh axis over which columns are split

  def first_column(self, head: jax.Array) -> jax.Array | int:
    """The number of a head's first column."""
    return jax.lax.axis_index(self.axis) * head.shape[1] if self.axis else 0

  def logits(self, hidden: jax.Array, head: jax.Array) -> jax.Array:
    """[B, t, V / n] of the n devices of `axis`."""
    logits = xla.logits_of(hidden, head) * self.scale
    columns = self.first_column(head) + jnp.arange(head.shape[1])
    return jnp.where(columns < self.vocabulary, logits, NOWHERE)

  def log_z(self, logits: jax.Array) -> jax.Array:
    """Log of the sum of exp(logit) over the vocabulary, [B, t]."""
    peak = jnp.max(logits, axis=-1)
    if self.axis:
      peak = jax.lax.pmax(peak, self.axis)
    return peak + jnp.log(self.sum(jnp.exp(logits - peak[..., None])))

  def log_probabilities(self, hidden: jax.Array, head: jax.Array) -> jax.Array:
    logits = self.logits(hidden, head)
    return logits - self.log_z(logits)[..., None]

  def sum(self, x: jax.Array) -> jax.Array:
    """Over the last axis and the devices of `axis`."""
    return self.over_devices(jnp.sum(x, axis=-1))

  def over_devices(self, x: jax.Array) -> jax.Array:
    """The sum over the devices of `axis`, such as of the cotangent of what each of them has, of which it has a part."""
    return jax.lax.psum(x, self.axis) if self.axis else x


def chunks(hidden: jax.Array, head: jax.Array) -> int:
  """Of tokens, for two arrays of logits at a time."""
  B, T, _ = hidden.shape
  return xla.chunks(B, T, 2 * head.shape[1])


def _mixture(ours: jax.Array, theirs: jax.Array, mix: float) -> jax.Array:
  return jnp.logaddexp(ours + math.log1p(-mix), theirs + math.log(mix))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def divergence(
  hidden, head, teacher_hidden, teacher_head, kind: str, mix: float, predictions: Predictions
) -> tuple[jax.Array, jax.Array]:
  """Float32 [B, T], as `api.divergence`; what comes of the entropy's gradient is left out."""

  def chunk(xs):
    ours = predictions.log_probabilities(xs[0], head)
    theirs = predictions.log_probabilities(xs[1], teacher_head)
    probabilities = jnp.exp(ours)
    if kind == "forward":
      terms = jnp.exp(theirs) * (theirs - ours)
    elif kind == "reverse":
      terms = probabilities * (ours - theirs)
    else:
      mixed = _mixture(ours, theirs, mix)
      terms = mix * jnp.exp(theirs) * (theirs - mixed) + (1 - mix) * probabilities * (ours - mixed)
    return predictions.sum(terms), -predictions.sum(probabilities * ours)

  n = chunks(hidden, head)
  return jax.tree.map(xla.joined, jax.lax.map(chunk, (xla.split(hidden, n), xla.split(teacher_hidden, n))))


def _forward(hidden, head, teacher_hidden, teacher_head, kind, mix, predictions):
  found = divergence(hidden, head, teacher_hidden, teacher_head, kind, mix, predictions)
  return found, (hidden, head, teacher_hidden, teacher_head)


def _backward(kind, mix, predictions, residuals, gradients):
  hidden, head, teacher_hidden, teacher_head = residuals
  gradient, _ = gradients

  def to_logits(h, teacher_h, cotangent):
    ours = predictions.log_probabilities(h, head)
    theirs = predictions.log_probabilities(teacher_h, teacher_head)
    probabilities = jnp.exp(ours)
    if kind == "forward":
      of_value = probabilities - jnp.exp(theirs)
    else:  # by the probabilities, then through the softmax
      slope = ours - theirs if kind == "reverse" else (1 - mix) * (ours - _mixture(ours, theirs, mix))
      of_value = probabilities * (slope - predictions.sum(probabilities * slope)[..., None])
    return of_value * (predictions.scale * cotangent[..., None])

  rest = teacher_hidden, predictions.over_devices(gradient)
  to_student = xla.gradients(to_logits, chunks(hidden, head), hidden, head, *rest)
  return *to_student, jnp.zeros_like(teacher_hidden), jnp.zeros_like(teacher_head)


divergence.defvjp(_forward, _backward)
