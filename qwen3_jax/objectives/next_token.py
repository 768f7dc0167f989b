"""Next-token prediction: the objective of pre-training and of supervised fine-tuning."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen3_jax.batch import Batch
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.objectives.loss_output import LossOutput, Objective
from qwen3_jax.objectives.token_loss import token_loss


def next_token(z_loss: float = 0.0) -> Objective:
  """Cross-entropy of `batch.targets`, weighted by `batch.loss_weights`, plus z_loss * log(Z)^2."""

  def objective(model: Transformer, batch: Batch, rng: jax.Array) -> LossOutput:
    del rng  # nothing here is random
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids)
    loss, correct = token_loss(hidden.final, hidden.head, batch.targets, batch.loss_weights, z_loss)
    return LossOutput(
      loss_sum=loss,
      weight=jnp.sum(batch.loss_weights),
      metrics={"loss": jax.lax.stop_gradient(loss), "accuracy": correct},
      router=hidden.router,
    )

  return objective
