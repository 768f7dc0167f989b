"""Cross-entropy of a linear head without the logits of the whole batch in memory."""

from __future__ import annotations

import jax

from kernels.linear_cross_entropy import xla


def linear_cross_entropy(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  z_loss: float = 0.0,
  vocabulary_axis: str | None = None,
  embed_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """Weighted sums over tokens of the loss and of correct predictions.

  Args:
    hidden: [B, T, D], the final hidden states.
    head: [D, V].
    targets: int32 [B, T].
    weights: float32 [B, T]; not differentiated.
    z_loss: weight of log(Z)^2, which keeps the logits' scale from drifting (PaLM, section 5).
    vocabulary_axis: under `shard_map`, the mesh axis over which the columns of `head` are split; each shard then gets
      the sums over the whole vocabulary, and its part of the gradient of hidden.
    embed_axes: under `shard_map`, the mesh axes over which the rows of `head` are split; they are gathered here, and
      their gradient is added up over those axes and scattered.

  Returns:
    Two float32 scalars: sum of weights * (-log p(target) + z_loss * log(Z)^2), differentiable in hidden and head;
    and sum of weights where the target has the largest logit.
  """
  B, T, D = hidden.shape
  if head.ndim != 2 or (head.shape[0] != D and not embed_axes) or targets.shape != (B, T) or weights.shape != (B, T):
    shapes = f"hidden {hidden.shape}, head {head.shape}, targets {targets.shape}, weights {weights.shape}"
    raise ValueError(f"linear_cross_entropy: {shapes} do not fit")
  return xla.linear_cross_entropy(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes)
