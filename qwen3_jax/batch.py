"""Batch: what one training step reads."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax

Field: TypeAlias = Any  # numpy from a pipeline, jax.Array on devices, ShapeDtypeStruct when compiling ahead


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """A batch of packed sequences; every field is [B, T].

  Position t of a row predicts `targets[t]` from `tokens[:t+1]` of the same segment.
  """

  tokens: Field  # int32
  targets: Field  # int32: the next token of the same document
  loss_weights: Field  # float32: 0 where there is no target (padding, a document's last token)
  positions: Field  # int32: restart at 0 in every document
  segment_ids: Field  # int32: 1.. per document in the row; 0 is padding

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tokens.shape
