"""Predictors of what documents hold, and what is lost when their predictions are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from qwen3_jax.data.records import Predictions


class Predicted(NamedTuple):
  """Of a document's n tokens that `records.predicted_tokens` names."""

  predictions: Predictions  # [n, k]
  outside: np.ndarray  # float32 [n]: probability of all other tokens


class Predictor(Protocol):
  """Gives the predictions that `prepare` stores beside documents."""

  @property
  def name(self) -> str:
    """What they depend on, besides the documents and `top_k`."""
    ...

  @property
  def top_k(self) -> int:
    """Predictions of a token."""
    ...

  def __call__(self, documents: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> list[Predicted | None]:
    """Of (tokens, loss mask) of each; None for a document that cannot be predicted, of which nothing is stored."""
    ...


@dataclasses.dataclass
class StorageError:
  """What storing few predictions of a token, as float16, loses."""

  tokens: int = 0  # that have predictions
  documents_without: int = 0
  outside_sum: float = 0.0  # of the probabilities of what is not stored
  outside_max: float = 0.0
  rounding_max: float = 0.0  # of a log-probability, in nats; at most 2^-11 of it or, close to 0, 2^-25

  def add(self, predicted: Predicted | None) -> None:
    if predicted is None:
      self.documents_without += 1
      return
    exact = predicted.predictions.log_probabilities
    rounded = exact.astype(np.float16).astype(np.float32)
    self.tokens += len(exact)
    self.outside_sum += float(predicted.outside.sum(dtype=np.float64))
    self.outside_max = max(self.outside_max, float(predicted.outside.max(initial=0)))
    self.rounding_max = max(self.rounding_max, float(np.abs(exact - rounded).max(initial=0)))


def described(errors: Iterable[StorageError]) -> dict[str, Any]:
  """All of them together; the probability of what is not stored as its mean and maximum over tokens."""
  errors = list(errors)
  tokens = sum(error.tokens for error in errors)
  return {
    "tokens": tokens,
    "documents_without": sum(error.documents_without for error in errors),
    "outside_mean": sum(error.outside_sum for error in errors) / max(tokens, 1),
    "outside_max": max(error.outside_max for error in errors),
    "rounding_max": max(error.rounding_max for error in errors),
  }
