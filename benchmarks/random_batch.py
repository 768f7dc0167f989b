"""Rows of random tokens, for timing a step."""

from __future__ import annotations

import numpy as np

from qwen3_jax.batch import Batch


def random_batch(B: int, T: int, V: int, documents: int = 1) -> Batch:
  """[B, T] below V; each row holds so many documents of equal length."""
  tokens = np.random.default_rng(0).integers(0, V, (B, T + 1), dtype=np.int32)
  document, position = np.divmod(np.arange(T, dtype=np.int32), T // documents)
  return Batch(
    tokens=np.ascontiguousarray(tokens[:, :-1]),
    targets=np.ascontiguousarray(tokens[:, 1:]),
    loss_weights=np.ones((B, T), np.float32),
    positions=np.tile(position, (B, 1)),
    segment_ids=np.tile(document + 1, (B, 1)),
  )
