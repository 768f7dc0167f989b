"""Batch: what one training step reads."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """A batch of packed sequences; every field is [B, T].

  Position t of a row predicts `targets[t]` from `tokens[:t+1]` of the same segment.
  """

  tokens: jax.Array | np.ndarray  # int32
  targets: jax.Array | np.ndarray  # int32: the next token of the same document
  loss_weights: jax.Array | np.ndarray  # float32: 0 where there is no target (padding, a document's last token)
  positions: jax.Array | np.ndarray  # int32: restart at 0 in every document
  segment_ids: jax.Array | np.ndarray  # int32: 1.. per document in the row; 0 is padding

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tokens.shape
