"""LossOutput: what every objective returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from qwen3_jax.models.moe import RouterStatistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossOutput:
  """Unreduced sums over a batch; the train step adds them over micro-batches and divides once, globally.

  So accumulation and any split of the batch over devices give the gradient of one big batch.
  """

  loss_sum: jax.Array  # [] float32
  weight: jax.Array  # [] float32: what loss_sum and the metrics are divided by
  metrics: dict[str, jax.Array]  # name -> sum, to be divided by weight
  router: RouterStatistics | None  # for the global-batch balance loss


# objective(model, batch, rng) -> LossOutput; that of distillation also takes the teachers' heads
Objective = Callable[..., LossOutput]
