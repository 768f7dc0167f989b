"""AdamW with a weight-decay mask, and learning-rate schedules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

SCHEDULES = ("wsd", "cosine", "constant")


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate over one stage of `steps` steps; `config` is the stage's optimizer section.

  wsd: linear warm-up, constant at peak_lr, then linear to final_lr over the last decay_fraction of the stage; S2's
  accelerated decay is decay_fraction=1. cosine: warm-up, then half a cosine to final_lr. constant: warm-up, then
  peak_lr.
  """
  warmup = min(config.warmup_steps, steps)
  up = optax.linear_schedule(0.0, config.peak_lr, max(warmup, 1))
  if config.schedule == "wsd":
    decay = min(round(config.decay_fraction * steps), steps - warmup)
    down = optax.linear_schedule(config.peak_lr, config.final_lr, max(decay, 1))
    rest = optax.join_schedules([optax.constant_schedule(config.peak_lr), down], [steps - warmup - decay])
    if decay == 0:
      rest = optax.constant_schedule(config.peak_lr)
  elif config.schedule == "cosine":
    rest = optax.cosine_decay_schedule(config.peak_lr, max(steps - warmup, 1), config.final_lr / config.peak_lr)
  elif config.schedule == "constant":
    rest = optax.constant_schedule(config.peak_lr)
  else:
    raise ValueError(f"schedule={config.schedule!r}; known: {', '.join(SCHEDULES)}")
  if warmup == 0:
    return rest
  # The first step of a warm-up already moves: step s uses (s + 1) / warmup of the peak.
  return optax.join_schedules([lambda step: up(step + 1), rest], [warmup])


def decay_mask(params):
  """True for matrices. Norm scales (and nothing else here) are named `scale` and do not decay."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """AdamW up to the learning rate: the train step multiplies the result by -lr (Loshchilov & Hutter 2019).

  The learning rate stays outside so that the state does not depend on a stage's schedule.
  """
  return optax.chain(
    optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=jnp.dtype(config.moment_dtype)),
    optax.add_decayed_weights(config.weight_decay, decay_mask),
  )
