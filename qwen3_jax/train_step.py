"""The train step: the only place with gradients, accumulation, clipping and the update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qwen3_jax.batch import Batch
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.moe import RouterStatistics, balance_loss
from qwen3_jax.models.transformer import Parameters, from_parameters
from qwen3_jax.objectives.loss_output import LossOutput, Objective
from qwen3_jax.train_state import TrainState

Metrics = dict[str, jax.Array]


def make_train_step(
  config: ModelConfig,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  *,
  clip_norm: float = 1.0,
  micro_batches: int = 1,
  balance_counts: str = "exact",
  gradient_dtype: str = "float32",
  offload_optimizer: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """`step(state, batch, learning_rate, *constants)`: one optimizer step on a global batch [B, T]; to be jitted.

  The state is meant to be donated. The learning rate is an argument so that stages and sweeps which differ in their
  schedules share a compiled program. `constants` are what the objective takes after its random key, if anything.

  The gradient is that of `sum of losses / sum of weights + router_aux_loss_coef * balance loss` over the whole batch,
  whatever `micro_batches` is. The balance loss needs the expert counts of the whole batch before any micro-batch's
  gradient: with a MoE model and several micro-batches, `balance_counts` "exact" finds them in a forward pass ahead,
  a third more work. "running" takes those of the micro-batches so far instead, as Qiu et al. 2025 do. "micro" takes a
  micro-batch's own, another loss: the one that they compare with.

  In `gradient_dtype` bfloat16 the parameters are cast once, and gradients are bfloat16 from the backward pass on and
  over micro-batches: half the memory, and rounding in the sum. With `offload_optimizer` the optimizer's arrays come
  from the host's memory and go back.

  A step whose loss or gradient is not finite changes nothing but the counters.
  """

  def accumulated_gradient(
    params: Parameters, batch: Batch, rng: jax.Array, objective: Objective
  ) -> tuple[Parameters, LossOutput]:
    """Sum over micro-batches of the gradient and of the outputs."""

    def differentiated(
      params: Parameters,
      batch: Batch,
      rng: jax.Array,
      total: LossOutput | None = None,
      earlier_slots: jax.Array | float = 0.0,
    ):
      """Loss times its weight, so that micro-batches add up. `total` is of all, `earlier_slots` of those before."""
      output = objective(from_parameters(config, params), batch, rng)
      loss = output.loss_sum
      if output.router is not None:
        total = jax.lax.stop_gradient(output if total is None else total)
        assert total.router is not None
        balance = balance_loss(output.router, total.router.slots + earlier_slots, total.router.tokens)
        loss += total.weight * config.router_aux_loss_coef * balance
      return loss, output

    gradient = jax.grad(differentiated, has_aux=True)
    if micro_batches == 1:
      return gradient(params, batch, rng)
    inputs = (split_micro_batches(batch, micro_batches), jax.random.split(rng, micro_batches))
    shapes = jax.eval_shape(lambda xs: objective(from_parameters(config, params), xs[0], xs[1]), _first(inputs))
    nothing = _zeros_like(shapes)

    total = None
    if config.is_moe and balance_counts == "exact":
      forward = lambda sums, xs: (_add(sums, objective(from_parameters(config, params), *xs)), None)
      total, _ = jax.lax.scan(forward, nothing, inputs)

    def micro_step(sums, xs):
      earlier_slots = sums[1].router.slots if config.is_moe and balance_counts == "running" else 0.0
      return _add(sums, gradient(params, *xs, total, earlier_slots)), None

    sums, _ = jax.lax.scan(micro_step, (_zeros_like(params), nothing), inputs)
    return sums

  def train_step(state: TrainState, batch: Batch, learning_rate: jax.Array, *constants) -> tuple[TrainState, Metrics]:
    of_batch = lambda model, batch, rng: objective(model, batch, rng, *constants)
    params = jax.tree.map(lambda p: p.astype(gradient_dtype), state.params)
    gradients, output = accumulated_gradient(params, batch, jax.random.fold_in(state.rng, state.step), of_batch)
    weight = jnp.maximum(output.weight, 1e-8)
    norm = optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), gradients)) / weight
    scale = 1.0 / weight if not clip_norm else jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12)) / weight
    gradients = jax.tree.map(lambda g: g * scale, gradients)

    before = _to(jax.memory.Space.Device, state.optimizer) if offload_optimizer else state.optimizer
    directions, optimizer_state = optimizer.update(gradients, before, state.params)
    updates = jax.tree.map(lambda direction: -learning_rate * direction, directions)
    finite = jnp.isfinite(norm) & jnp.isfinite(output.loss_sum)
    keep = lambda new, old: jnp.where(finite, new, old)
    optimizer_state = jax.tree.map(keep, optimizer_state, before)
    if offload_optimizer:
      optimizer_state = _to(jax.memory.Space.Host, optimizer_state)
    new_state = TrainState(
      step=state.step + 1,
      params=jax.tree.map(keep, optax.apply_updates(state.params, updates), state.params),
      optimizer=optimizer_state,
      rng=state.rng,
      skipped=jnp.where(finite, 0, state.skipped + 1),
    )
    metrics = {name: value / weight for name, value in output.metrics.items()} | {
      "gradient_norm": norm,
      "update_norm": optax.global_norm(updates),
      "parameter_norm": optax.global_norm(new_state.params),
      "learning_rate": jnp.asarray(learning_rate, jnp.float32),
      "skipped_steps": new_state.skipped,
    }
    if output.router is not None:
      metrics |= router_metrics(output.router)
    return new_state, metrics

  return train_step


def make_evaluation_step(config: ModelConfig, objective: Objective) -> Callable[[Parameters, Batch], LossOutput]:
  """Sums of the objective over one global batch, those of the routers too, without gradients; to be jitted."""

  def evaluation_step(params: Parameters, batch: Batch) -> LossOutput:
    return objective(from_parameters(config, params), batch, jax.random.PRNGKey(0))

  return evaluation_step


def router_metrics(router: RouterStatistics) -> Metrics:
  """How evenly experts are used, averaged over layers.

  balance_loss: 1 when balanced. expert_load_entropy: entropy of the experts' shares over ln(E), in [0, 1].
  expert_max_violation: the busiest expert's load over the mean, minus 1.
  """
  L, E = router.slots.shape
  share = router.slots / jnp.maximum(jnp.sum(router.slots, axis=-1, keepdims=True), 1.0)
  entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-30)), axis=-1) / jnp.log(E)
  return {
    "balance_loss": balance_loss(router, router.slots, router.tokens) / L,
    "expert_load_entropy": jnp.mean(entropy),
    "expert_max_violation": jnp.mean(jnp.max(share, axis=-1) * E - 1.0),
  }


def split_micro_batches(batch: Any, n: int) -> Any:
  """Arrays [B, ...] -> [n, B/n, ...]. Micro-batch i takes rows i, i+n, ...: each device keeps its own rows."""
  B = jax.tree.leaves(batch)[0].shape[0]
  if B % n:
    raise ValueError(f"batch of {B} sequences does not split into micro_batches={n}")
  return jax.tree.map(lambda x: x.reshape(B // n, n, *x.shape[1:]).swapaxes(0, 1), batch)


def map_micro_batches(function: Callable[[Any], jax.Array], batch: Any, n: int) -> jax.Array:
  """`function`, which gives an array [b, ...] of a batch of b rows, of one micro-batch after the other: [B, ...]."""
  if n == 1:
    return function(batch)
  found = jax.lax.map(function, split_micro_batches(batch, n))  # [n, B/n, ...]
  return found.swapaxes(0, 1).reshape(-1, *found.shape[2:])


def _to(space, tree):
  """Moves the arrays of `tree`; its scalars stay where they are."""
  return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, tree)


def _first(tree):
  return jax.tree.map(lambda x: x[0], tree)


def _zeros_like(tree):
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _add(a, b):
  return jax.tree.map(jnp.add, a, b)
