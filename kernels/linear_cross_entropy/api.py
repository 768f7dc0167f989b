"""Cross-entropy of a linear head without the logits of the whole batch in memory."""

from __future__ import annotations

import jax

from kernels.linear_cross_entropy import xla


def linear_cross_entropy(
  hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Weighted sums over tokens of the loss and of correct predictions.

  Args:
    hidden: [B, T, D], the final hidden states.
    head: [D, V].
    targets: int32 [B, T].
    weights: float32 [B, T]; not differentiated.
    z_loss: weight of log(Z)^2, which keeps the logits' scale from drifting (PaLM, section 5).

  Returns:
    Two float32 scalars: sum of weights * (-log p(target) + z_loss * log(Z)^2), differentiable in hidden and head;
    and sum of weights where the target has the largest logit.
  """
  B, T, D = hidden.shape
  if head.ndim != 2 or head.shape[0] != D or targets.shape != (B, T) or weights.shape != (B, T):
    shapes = f"hidden {hidden.shape}, head {head.shape}, targets {targets.shape}, weights {weights.shape}"
    raise ValueError(f"linear_cross_entropy: {shapes} do not fit")
  return xla.linear_cross_entropy(hidden, head, targets, weights, z_loss)
