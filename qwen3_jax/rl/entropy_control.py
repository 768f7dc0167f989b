"""A coefficient of an entropy bonus that holds the policy's entropy on target without a hand (report, section 4.2)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class EntropyControl:
  """Adds `gain` times what entropy lacks to the coefficient after every batch of rollouts, within its bounds.

  Entropies are of the rollouts, in nats a token: mean -log p of what was sampled estimates it without bias.
  """

  target: float  # 0: the entropy of the first rollouts
  rise: float  # of the target from the first step to the last
  gain: float  # 0: the coefficient stays
  minimum: float
  maximum: float
  coefficient: float

  def target_at(self, progress: float) -> float:
    """After a share of the stage, in 0..1."""
    return self.target + self.rise * progress

  def update(self, entropy: float, progress: float) -> None:
    if not self.target:
      self.target = entropy
    moved = self.coefficient + self.gain * (self.target_at(progress) - entropy)
    if self.gain:
      self.coefficient = min(max(moved, self.minimum), self.maximum)

  def get_state(self) -> dict[str, float]:
    return {"target": self.target, "coefficient": self.coefficient}

  def set_state(self, state: dict[str, float]) -> None:
    self.target, self.coefficient = state["target"], state["coefficient"]
