"""The oracle: all logits at once, in at least float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def linear_cross_entropy(hidden, head, targets, weights, z_loss: float = 0.0):
  """As `api.linear_cross_entropy`."""
  precise = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=precise)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = jnp.sum(weights * (log_z - target_logit + z_loss * jnp.square(log_z)))
  correct = jnp.sum(weights * (target_logit >= jnp.max(logits, axis=-1)))
  return loss, jax.lax.stop_gradient(correct)


def token_log_probabilities(hidden, head, targets, temperature: float = 1.0):
  """As `api.token_log_probabilities`."""
  log_p = _log_probabilities(hidden, head, temperature)
  return jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0], -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def divergence(
  hidden, head, teacher_hidden, teacher_head, kind: str = "forward", *, mix: float = 0.5, temperature: float = 1.0
):
  """As `api.divergence`, with the teacher's gradients and the entropy's too."""
  student = _log_probabilities(hidden, head, temperature)
  teacher = _log_probabilities(teacher_hidden, teacher_head, temperature)
  kl = lambda p, q: jnp.sum(jnp.exp(p) * (p - q), axis=-1)
  entropy = -jnp.sum(jnp.exp(student) * student, axis=-1)
  if kind == "jsd":
    mixed = jnp.log(mix * jnp.exp(teacher) + (1 - mix) * jnp.exp(student))
    return mix * kl(teacher, mixed) + (1 - mix) * kl(student, mixed), entropy
  return (kl(student, teacher) if kind == "reverse" else kl(teacher, student)), entropy


def _log_probabilities(hidden, head, temperature: float):
  precise = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=precise)
  return jax.nn.log_softmax(logits / temperature, axis=-1)
