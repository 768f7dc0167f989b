"""Group-relative policy optimisation (Shao et al. 2024) with the corrections that later work found it to need.

A token's loss is -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r the ratio of the current policy to the one that
the updates on a rollout started from. The report names GRPO with off-policy updates and entropy control (section 4.2);
it publishes none of its options.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from qwen3_jax.batch import Batch
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.objectives.grpo_settings import GRPO
from qwen3_jax.objectives.loss_output import LossOutput, Objective
from qwen3_jax.objectives.token_loss import token_log_probabilities

_LARGEST_DIFFERENCE = 20.0


def grpo(settings: GRPO) -> Objective:
  """The objective of a batch whose `rollout` is set.

  Metrics are means over what the loss is a mean over: loss (of the policy), entropy, ratio, clipped_high and
  clipped_low (shares of tokens whose gradient the clip removed), dual_clipped, log_probability_gap (|old - sampler|),
  importance (mean weight), importance_capped, and with a reference kl.
  """

  def objective(model: Transformer, batch: Batch, rng: jax.Array) -> LossOutput:
    del rng  # nothing here is random
    rollout = batch.rollout
    if rollout is None:
      raise ValueError("grpo: the batch has no rollout")
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids, experts=rollout.experts)
    found, entropy = token_log_probabilities(hidden.final, hidden.head, batch.targets, settings.temperature)
    counts = batch.loss_weights > 0
    # What does not count may hold anything, also numbers that are not finite once exponentiated.
    masked = lambda x: jnp.where(counts, x, 0.0)
    log_probability, entropy = masked(found), masked(entropy)
    current = jax.lax.stop_gradient(log_probability)
    old = current if rollout.old_log_probabilities is None else masked(rollout.old_log_probabilities)

    difference = log_probability - old
    if settings.ratio == "sequence":
      difference = _of_sequences(difference * rollout.shares, batch.segment_ids, settings.sequences_per_row)
      difference = masked(difference)
    ratio = _exp(difference)
    advantage = masked(rollout.advantages)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high) * advantage)
    dual = jnp.zeros_like(counts)
    if settings.dual_clip:
      dual = (advantage < 0) & (gain < settings.dual_clip * advantage)
      gain = jnp.where(dual, settings.dual_clip * advantage, gain)

    from_sampler = old - masked(rollout.sampling_log_probabilities)
    importance = jnp.ones_like(ratio)
    if settings.importance_cap:
      # The exponent is bounded so that a token which the sampler thought impossible gives the cap, not infinity.
      importance = jnp.exp(jnp.minimum(from_sampler, math.log(settings.importance_cap)))
    loss = -gain * importance

    mask = batch.loss_weights.astype(jnp.float32)
    of_metrics, weights = rollout.shares, rollout.shares
    if settings.aggregation == "token":
      of_metrics, weights = mask, mask
    elif settings.aggregation == "constant":
      weights = mask / settings.constant_length
    total = loss - rollout.entropy_bonus * entropy
    metrics = {
      "entropy": entropy,
      "ratio": ratio,
      "clipped_high": (advantage > 0) & (ratio > 1 + settings.clip_high),
      "clipped_low": (advantage < 0) & (ratio < 1 - settings.clip_low),
      "dual_clipped": dual,
      "log_probability_gap": jnp.abs(from_sampler),
      "importance": importance,
      "importance_capped": from_sampler > math.log(settings.importance_cap or math.inf),
    }
    if settings.kl_coefficient:
      if rollout.reference_log_probabilities is None:
        raise ValueError(f"grpo: kl_coefficient={settings.kl_coefficient} needs the reference's log-probabilities")
      d = masked(rollout.reference_log_probabilities) - log_probability
      kl = _exp(d) - d - 1.0
      total += settings.kl_coefficient * kl
      metrics["kl"] = kl
    sums = {name: jnp.sum(of_metrics * jax.lax.stop_gradient(x)) for name, x in metrics.items()}
    return LossOutput(
      loss_sum=jnp.sum(weights * total),
      weight=jnp.sum(of_metrics),
      metrics={"loss": jnp.sum(weights * jax.lax.stop_gradient(loss)), **sums},
      router=hidden.router,
    )

  return objective


def _exp(difference: jax.Array) -> jax.Array:
  """exp of a difference of log-probabilities, bounded: an infinite ratio, though clipped, would have a gradient NaN."""
  return jnp.exp(jnp.clip(difference, -_LARGEST_DIFFERENCE, _LARGEST_DIFFERENCE))


def _of_sequences(x: jax.Array, segment_ids: jax.Array, most: int) -> jax.Array:
  """Every token's sum of x [B, T] over its sequence, one of the segments 1 .. most of its row."""
  members = jax.nn.one_hot(segment_ids - 1, most, dtype=x.dtype)  # [B, T, most]; padding is in none
  exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  return exact("bs,bts->bt", exact("bt,bts->bs", x, members), members)
