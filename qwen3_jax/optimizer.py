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
    scale_by_adam(config.beta1, config.beta2, config.epsilon, jnp.dtype(config.moment_dtype)),
    optax.add_decayed_weights(config.weight_decay, decay_mask),
  )


def scale_by_adam(beta1: float, beta2: float, epsilon: float, moment_dtype: jnp.dtype) -> optax.GradientTransformation:
  """Adam's direction (Kingma & Ba 2015), computed in float32; both moments are stored in `moment_dtype`.

  optax's own stores only the mean of gradients in another type. Directions have the parameters' type.
  """

  def init(params):
    zeros = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, moment_dtype), params)
    return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros())

  def update(gradients, state, params):
    count = optax.safe_increment(state.count)
    mean_scale, square_scale = (1.0 / (1.0 - beta ** count.astype(jnp.float32)) for beta in (beta1, beta2))

    def leaf(gradient, mean, square, param):
      gradient = gradient.astype(jnp.float32)
      mean = beta1 * mean.astype(jnp.float32) + (1.0 - beta1) * gradient
      square = beta2 * square.astype(jnp.float32) + (1.0 - beta2) * jnp.square(gradient)
      direction = mean * mean_scale / (jnp.sqrt(square * square_scale) + epsilon)
      return direction.astype(param.dtype), mean.astype(moment_dtype), square.astype(moment_dtype)

    triples = jax.tree.map(leaf, gradients, state.mu, state.nu, params)
    directions, mean, square = jax.tree.transpose(jax.tree.structure(gradients), None, triples)
    return directions, optax.ScaleByAdamState(count, mean, square)

  return optax.GradientTransformation(init, update)
