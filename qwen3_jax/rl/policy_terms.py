"""What GRPO needs of a batch of rollouts when its updates begin: the log-probabilities of three policies, an entropy
bonus."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from qwen3_jax.batch import Batch
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.rl.entropy_control import EntropyControl
from qwen3_jax.rl.experience import take_rows

# Log-probabilities of a batch's targets under a policy: (parameters, batch [B, T]) -> float32 [B, T] on the host.
LogProbabilities = Callable[[Parameters, Batch], np.ndarray]


@dataclasses.dataclass
class PolicyTerms:
  """`Terms` of reinforcement learning."""

  entropy: EntropyControl  # adapted after every batch of rollouts
  log_probabilities: LogProbabilities
  old: bool  # whether the updates on a batch are several: the first changes the policy
  reference: Parameters | None  # of the reference model; None: not needed
  batch_size: int  # rows whose log-probabilities are computed at a time

  def begin(self, params: Parameters, batch: Batch, entropy: float, progress: float) -> tuple[Batch, dict[str, float]]:
    self.entropy.update(entropy, progress)
    assert batch.rollout is not None
    rollout = dataclasses.replace(
      batch.rollout, entropy_bonus=np.float32(self.entropy.coefficient) * batch.loss_weights
    )
    if self.old:
      rollout = dataclasses.replace(rollout, old_log_probabilities=self._of_all(params, batch))
    if self.reference is not None:
      rollout = dataclasses.replace(rollout, reference_log_probabilities=self._of_all(self.reference, batch))
    metrics = {
      "entropy_target": self.entropy.target_at(progress),
      "entropy_coefficient": self.entropy.coefficient,
    }
    return dataclasses.replace(batch, rollout=rollout), metrics

  def _of_all(self, params: Parameters, batch: Batch) -> np.ndarray:
    starts = range(0, len(batch.tokens), self.batch_size)
    parts = [take_rows(batch, np.arange(start, start + self.batch_size)) for start in starts]
    return np.concatenate([self.log_probabilities(params, part) for part in parts])

  def get_state(self) -> dict[str, Any]:
    return self.entropy.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    self.entropy.set_state(state)
