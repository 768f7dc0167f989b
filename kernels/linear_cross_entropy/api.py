"""What training needs of a linear head's predictions, without the logits of the whole batch in memory.

Under `shard_map` the head may be split. `vocabulary_axis` is the mesh axis over which its columns are: every device
then gets results over the whole vocabulary, and its part of the gradient of hidden. `embed_axes` are the mesh axes over
which its rows are: they are gathered here, and their gradient is added up over those axes and scattered.

On TPU, if D is a multiple of 128, Pallas kernels make the loss and the statistics of tokens, and logits never reach
HBM; elsewhere, and for divergences, chunks of tokens have their logits in memory.
"""

from __future__ import annotations

import difflib

import jax
import jax.numpy as jnp

from kernels.linear_cross_entropy import divergence as _divergence
from kernels.linear_cross_entropy import loss
from kernels.linear_cross_entropy import top_divergence as _top
from kernels.linear_cross_entropy.head import gathered
from kernels.linear_cross_entropy.tokens import token_statistics


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
    vocabulary_axis, embed_axes: how `head` is split, see above.

  Returns:
    Two float32 scalars: sum of weights * (-log p(target) + z_loss * log(Z)^2), differentiable in hidden and head;
    and sum of weights where the target has the largest logit.
  """
  _check("linear_cross_entropy", hidden, head, embed_axes, targets=targets, weights=weights)
  return loss.linear_cross_entropy(hidden, head, targets, weights, z_loss, vocabulary_axis, embed_axes)


def token_log_probabilities(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  temperature: float = 1.0,
  vocabulary_axis: str | None = None,
  embed_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target, and entropy of each prediction, in nats: float32 [B, T].

  Of softmax(logits / temperature). Both are differentiable in hidden and head; arguments as in `linear_cross_entropy`.
  """
  _check("token_log_probabilities", hidden, head, embed_axes, targets=targets)
  if temperature <= 0:
    raise ValueError(f"token_log_probabilities: temperature {temperature}, expected more than 0")
  found = token_statistics(hidden, gathered(head, embed_axes), targets, 1.0 / temperature, vocabulary_axis)
  return found.target - found.log_z, found.log_z - found.mean


def divergence(
  hidden: jax.Array,
  head: jax.Array,
  teacher_hidden: jax.Array,
  teacher_head: jax.Array,
  kind: str = "forward",
  *,
  mix: float = 0.5,
  temperature: float = 1.0,
  vocabulary: int | None = None,
  vocabulary_axis: str | None = None,
  embed_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """What a student's predictions differ by from a teacher's, over the whole vocabulary, and their entropy.

  In nats, float32 [B, T]; of softmax(logits / temperature) of both. The divergence is differentiable in the student's
  hidden and head, and constant in the teacher's; the entropy, the student's, is constant.

  Args:
    hidden, head: the student's, [B, T, D] and [D, V].
    teacher_hidden, teacher_head: [B, T, D'] and [D', V]; both heads are split alike.
    kind: "forward" KL(teacher || student), "reverse" KL(student || teacher), or "jsd", the generalised Jensen-Shannon
      divergence of Agarwal et al. 2024: mix * KL(teacher || M) + (1 - mix) * KL(student || M) with
      M = mix * teacher + (1 - mix) * student.
    mix: in (0, 1).
    vocabulary: columns that stand for tokens, the first ones; others are in neither distribution. None: all.
  """
  _check("divergence", hidden, head, embed_axes)
  _check("divergence: teacher", teacher_hidden, teacher_head, embed_axes)
  if hidden.shape[:2] != teacher_hidden.shape[:2] or head.shape[1] != teacher_head.shape[1]:
    shapes = f"hidden {hidden.shape} and {teacher_hidden.shape}, heads {head.shape} and {teacher_head.shape}"
    raise ValueError(f"divergence: {shapes} do not fit")
  if kind not in _divergence.KINDS:
    near = difflib.get_close_matches(kind, _divergence.KINDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"divergence: kind {kind!r}, expected one of {', '.join(_divergence.KINDS)}{hint}")
  if not 0 < mix < 1:
    raise ValueError(f"divergence: mix {mix}, expected within (0, 1)")
  predictions = _predictions("divergence", head, temperature, vocabulary, vocabulary_axis)
  head, teacher_head = gathered(head, embed_axes), gathered(teacher_head, embed_axes)
  return _divergence.divergence(hidden, head, teacher_hidden, teacher_head, kind, mix, predictions)


def top_divergence(
  hidden: jax.Array,
  head: jax.Array,
  ids: jax.Array,
  log_probabilities: jax.Array,
  *,
  vocabulary: int | None = None,
  vocabulary_axis: str | None = None,
  embed_axes: tuple[str, ...] = (),
) -> jax.Array:
  """KL(teacher || student) of each prediction, of a teacher whose k most likely tokens are known: float32 [B, T].

  Over k + 1 outcomes, these tokens and all others together: at most the divergence over the vocabulary. Differentiable
  in hidden and head; 0 where nothing is known.

  Args:
    ids: int32 [B, T, k], different tokens; -1 is none, and so is what lies beyond `vocabulary`.
    log_probabilities: float32 [B, T, k], of the teacher's softmax at temperature 1.
  """
  _check("top_divergence", hidden, head, embed_axes)
  if ids.shape != log_probabilities.shape or ids.shape[:2] != hidden.shape[:2] or ids.ndim != 3:
    raise ValueError(f"top_divergence: hidden {hidden.shape}, ids {ids.shape} and {log_probabilities.shape} do not fit")
  predictions = _predictions("top_divergence", head, 1.0, vocabulary, vocabulary_axis)
  ids = jnp.where(ids < predictions.vocabulary, ids, -1)
  return _top.top_divergence(hidden, gathered(head, embed_axes), ids, log_probabilities, predictions)


def _predictions(
  name: str, head: jax.Array, temperature: float, vocabulary: int | None, vocabulary_axis: str | None
) -> _divergence.Predictions:
  columns = head.shape[1] * (jax.lax.axis_size(vocabulary_axis) if vocabulary_axis else 1)
  if temperature <= 0:
    raise ValueError(f"{name}: temperature {temperature}, expected more than 0")
  if vocabulary is not None and not 1 <= vocabulary <= columns:
    raise ValueError(f"{name}: vocabulary {vocabulary}, expected 1 .. {columns}")
  return _divergence.Predictions(1.0 / temperature, vocabulary or columns, vocabulary_axis)


def _check(name: str, hidden: jax.Array, head: jax.Array, embed_axes: tuple[str, ...], **of_tokens: jax.Array) -> None:
  B, T, D = hidden.shape
  rows_fit = head.ndim == 2 and (head.shape[0] == D or embed_axes)
  if not rows_fit or any(x.shape != (B, T) for x in of_tokens.values()):
    shapes = [f"hidden {hidden.shape}", f"head {head.shape}", *(f"{name} {x.shape}" for name, x in of_tokens.items())]
    raise ValueError(f"{name}: {', '.join(shapes)} do not fit")
