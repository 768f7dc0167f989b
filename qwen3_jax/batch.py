"""Batch: what one training step reads."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax

Field: TypeAlias = Any  # numpy from a pipeline, jax.Array on devices, ShapeDtypeStruct when compiling ahead


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
  """Of generated sequences, aligned with `Batch.targets`: float32 [B, T] unless said otherwise.

  `Batch.loss_weights` is 1 for tokens that the model chose and that count, else 0, and so is everything here.
  """

  advantages: Field
  shares: Field  # 1 / tokens of its sequence that count: every sequence adds up to 1
  entropy_bonus: Field  # coefficient of the entropy of the prediction
  sampling_log_probabilities: Field  # of the distribution that was drawn from
  old_log_probabilities: Field | None = None  # of the policy that updates on this rollout start from; None: the current
  reference_log_probabilities: Field | None = None  # of the reference model
  experts: Field | None = None  # int16 [B, T, L, k]: whom tokens went to in the rollout; -1 where not recorded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopPredictions:
  """The most likely next tokens under a teacher, stored beside a text: [B, T, k], aligned with `Batch.targets`."""

  ids: Field  # int32; -1: none, and where all are, nothing is stored of the position
  log_probabilities: Field  # float32: of the whole vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Teachers:
  """What teachers make of a batch that a student wrote."""

  choice: Field  # int32 [B, T]: which of them a token learns from
  hidden: tuple[Field, ...] = ()  # [B, T, D'] of each: final hidden states; its head is a constant of the step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """A batch of packed sequences; every field is [B, T] or [B, T, ...].

  Position t of a row predicts `targets[t]` from `tokens[:t+1]` of the same segment.
  """

  tokens: Field  # int32
  targets: Field  # int32: the next token of the same document
  loss_weights: Field  # float32: 0 where there is no target (padding, a document's last token)
  positions: Field  # int32: restart at 0 in every document
  segment_ids: Field  # int32: 1.. per document in the row; 0 is padding
  rollout: Rollout | None = None  # of on-policy stages
  top: TopPredictions | None = None  # of off-policy distillation with stored predictions
  teachers: Teachers | None = None  # of on-policy distillation

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tokens.shape
