"""Distillation from a teacher's predictions (Qwen3 report, section 4.5; Agarwal et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen3_jax.batch import Batch
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.objectives.distillation_settings import Distillation
from qwen3_jax.objectives.loss_output import LossOutput, Objective
from qwen3_jax.objectives.token_loss import (
  token_divergence,
  token_loss,
  token_top_divergence,
)


def distillation(settings: Distillation, vocabulary: int) -> Objective:
  """On-policy: the divergence of the student's predictions from a teacher's, on what the student wrote.

  `objective(model, batch, rng, teacher_heads)`: a token learns from the teacher that `batch.teachers.choice` names, of
  `batch.teachers.hidden` [B, T, D'] and the head [D', V]. `vocabulary`: ids that have a token. Metrics: loss, entropy
  (the student's, nats a token, at the divergence's temperature).
  """

  def objective(model: Transformer, batch: Batch, rng: jax.Array, teacher_heads: tuple[jax.Array, ...]) -> LossOutput:
    del rng  # nothing here is random
    teachers = batch.teachers
    if teachers is None or len(teachers.hidden) != len(teacher_heads):
      found = 0 if teachers is None else len(teachers.hidden)
      raise ValueError(f"distillation: hidden states of {found} teachers and {len(teacher_heads)} heads")
    experts = None if batch.rollout is None else batch.rollout.experts
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids, experts=experts)
    weights = batch.loss_weights.astype(jnp.float32)
    counts = weights > 0
    total = entropy = jnp.zeros(weights.shape, jnp.float32)
    for number, (of_teacher, head) in enumerate(zip(teachers.hidden, teacher_heads)):
      mine = counts & (teachers.choice == number)
      # What does not count may hold anything, also numbers that are not finite: 0 times these is no number.
      known = jnp.where(mine[..., None], of_teacher, 0)
      differs, entropy = token_divergence(
        hidden.final, hidden.head, known, head, settings.divergence, settings.mix, settings.temperature, vocabulary
      )
      total += jnp.where(mine, differs, 0.0)
    loss = jnp.sum(weights * total)
    return LossOutput(
      loss_sum=loss,
      weight=jnp.sum(weights),
      metrics={
        "loss": jax.lax.stop_gradient(loss),
        "entropy": jnp.sum(jnp.where(counts, weights * entropy, 0.0)),
      },
      router=hidden.router,
    )

  return objective


def next_token_with_teacher(z_loss: float, weight: float) -> Objective:
  """Off-policy: cross-entropy of a teacher's text, plus `weight` times the divergence from its stored predictions.

  Metrics: loss (of both), cross_entropy, divergence (0 where nothing is stored), accuracy,
  teacher_tail (mean mass of the teacher outside of what is stored).
  """

  def objective(model: Transformer, batch: Batch, rng: jax.Array) -> LossOutput:
    del rng  # nothing here is random
    if batch.top is None:
      raise ValueError("next_token_with_teacher: the batch has no stored predictions")
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids)
    weights = batch.loss_weights.astype(jnp.float32)
    entropy, correct = token_loss(hidden.final, hidden.head, batch.targets, weights, z_loss)
    # What does not count is as if nothing were stored of it.
    ids, log_p = jnp.where((weights > 0)[..., None], batch.top.ids, -1), batch.top.log_probabilities
    found = jnp.sum(weights * token_top_divergence(hidden.final, hidden.head, ids, log_p))
    stored = jnp.sum(jnp.where(ids >= 0, jnp.exp(log_p), 0.0), axis=-1)
    tail = jnp.where(jnp.any(ids >= 0, axis=-1), jnp.maximum(1.0 - stored, 0.0), 0.0)
    loss = entropy + weight * found
    return LossOutput(
      loss_sum=loss,
      weight=jnp.sum(weights),
      metrics={
        "loss": jax.lax.stop_gradient(loss),
        "cross_entropy": jax.lax.stop_gradient(entropy),
        "divergence": jax.lax.stop_gradient(found),
        "accuracy": correct,
        "teacher_tail": jnp.sum(weights * tail),
      },
      router=hidden.router,
    )

  return objective
