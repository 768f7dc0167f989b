"""Stage: what the train loop needs to know of one stage of a pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import optax

from qwen3_jax.batch import Batch
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.train_state import TrainState


class BatchSource(Protocol):
  """Where batches come from: packed documents, or rollouts of the current parameters."""

  def next_batch(self, state: TrainState) -> Batch:
    """This process's rows of the next global batch, as numpy arrays."""

  def get_state(self) -> dict[str, Any]:
    """JSON-able; refers to the batch returned last; the same on every process."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues after the batch that `state` refers to, on any number of processes."""

  def metrics(self) -> dict[str, float]:
    """Scalars of the batch returned last, beside those of its step."""

  def close(self) -> None:
    """Stops what reads ahead."""


@dataclasses.dataclass(frozen=True)
class Sample:
  prompt: str
  text: str  # what the model writes after it


# What the model with these parameters writes -> scalars, and samples to be shown.
Assess = Callable[[Parameters], tuple[dict[str, float], list[Sample]]]


@dataclasses.dataclass(frozen=True)
class Stage:
  name: str
  program: TrainProgram
  schedule: optax.Schedule
  steps: int
  max_skipped_steps: int
  batches: BatchSource
  evaluate_every: int
  validation: dict[str, list[Batch]]  # domain -> this process's rows of fixed batches
  assess: Assess
  facts: dict[str, float]  # scalars written once, e.g. unigram_entropy/<domain>
  carries_optimizer: bool  # whether it goes on with the optimizer state of the stage before
  complete: Callable[[Batch], Batch] = lambda batch: batch  # adds what is made on the devices: teachers' hidden states
  constants: tuple[Any, ...] = ()  # of every step: the teachers' heads
