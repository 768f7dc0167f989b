"""Divergence from a teacher of whom only the most likely tokens are known, in chunks of tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels.linear_cross_entropy import xla
from kernels.linear_cross_entropy.divergence import NOWHERE, Predictions, chunks

_NO_TAIL = 1e-6  # a teacher's mass outside of the stored tokens that is rounding


def _teacher(ids: jax.Array, log_probabilities: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
  """Probabilities of the stored tokens [B, t, k], and of all others [B, t]; 0 where nothing is stored."""
  stored = jnp.where(ids >= 0, jnp.exp(jnp.where(ids >= 0, log_probabilities, 0.0)), 0.0)
  others = 1.0 - jnp.sum(stored, axis=-1)
  # Where all tokens are stored there are no others, whatever rounding of the stored numbers leaves.
  number = jnp.sum(ids >= 0, axis=-1)
  return stored, jnp.where((others > _NO_TAIL) & (number > 0) & (number < vocabulary), others, 0.0)


def _student(h, head, ids, predictions: Predictions):
  """Logits [B, t, V], the others' alone, their normalisers [B, t], and which places of ids this device has."""
  logits = predictions.logits(h, head)
  columns = ids - predictions.first_column(head)
  here = (ids >= 0) & (columns >= 0) & (columns < head.shape[1])
  columns = jnp.where(here, columns, head.shape[1])  # out of range: dropped
  b, t, _ = jnp.ogrid[: ids.shape[0], : ids.shape[1], : ids.shape[2]]
  others = logits.at[b, t, columns].set(NOWHERE, mode="drop")
  return logits, others, predictions.log_z(logits), predictions.log_z(others), (b, t, columns), here


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def top_divergence(hidden, head, ids, log_probabilities, predictions: Predictions) -> jax.Array:
  """Float32 [B, T], as `api.top_divergence`."""

  def chunk(xs):
    h, ids, log_p = xs
    stored, tail = _teacher(ids, log_p, predictions.vocabulary)
    logits, _, log_z, log_z_others, (b, t, columns), here = _student(h, head, ids, predictions)
    ours = jnp.where(here, logits[b, t, jnp.minimum(columns, head.shape[1] - 1)] - log_z[..., None], 0.0)
    of_stored = jnp.where(stored > 0, stored * (log_p - predictions.over_devices(ours)), 0.0)
    of_tail = tail * (jnp.log(jnp.where(tail > 0, tail, 1.0)) - (log_z_others - log_z))
    return jnp.sum(of_stored, axis=-1) + jnp.where(tail > 0, of_tail, 0.0)

  n = chunks(hidden, head)
  return xla.joined(jax.lax.map(chunk, tuple(xla.split(x, n) for x in (hidden, ids, log_probabilities))))


def _forward(hidden, head, ids, log_probabilities, predictions):
  return top_divergence(hidden, head, ids, log_probabilities, predictions), (hidden, head, ids, log_probabilities)


def _backward(predictions, residuals, gradient):
  hidden, head, ids, log_probabilities = residuals

  def to_logits(h, ids, log_p, cotangent):
    stored, tail = _teacher(ids, log_p, predictions.vocabulary)
    logits, others, log_z, log_z_others, where, here = _student(h, head, ids, predictions)
    mass = jnp.sum(stored, axis=-1) + tail
    of_value = jnp.exp(logits - log_z[..., None]) * mass[..., None]
    among_others = jnp.where((tail > 0)[..., None], jnp.exp(others - log_z_others[..., None]), 0.0)
    of_value -= tail[..., None] * among_others
    of_value = of_value.at[where].add(jnp.where(here, -stored, 0.0), mode="drop")
    return of_value * (predictions.scale * cotangent[..., None])

  rest = ids, log_probabilities, predictions.over_devices(gradient)
  return *xla.gradients(to_logits, chunks(hidden, head), hidden, head, *rest), None, jnp.zeros_like(log_probabilities)


top_divergence.defvjp(_forward, _backward)
