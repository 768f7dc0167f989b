"""Distillation: the options of the on-policy objective in `distillation.py`."""

from __future__ import annotations

import dataclasses

from qwen3_jax import nearest

DIVERGENCES = ("reverse", "forward", "jsd")


@dataclasses.dataclass(frozen=True)
class Distillation:
  # reverse: KL(student || teacher), which keeps a small student to what it can do well (Gu et al. 2024); forward:
  # KL(teacher || student); jsd: in between (Agarwal et al. 2024).
  divergence: str = "reverse"
  mix: float = 0.5  # jsd: the teacher's share of the mixture
  temperature: float = 1.0  # that both models' logits are divided by

  def __post_init__(self):
    problems = []
    if self.divergence not in DIVERGENCES:
      hint = nearest.clause(self.divergence, DIVERGENCES)
      problems.append(f"divergence={self.divergence!r}, expected one of {', '.join(DIVERGENCES)}{hint}")
    if not 0 < self.mix < 1:
      problems.append(f"mix={self.mix}, expected within (0, 1)")
    if self.temperature <= 0:
      problems.append(f"temperature={self.temperature}, expected above 0")
    if problems:
      raise ValueError("Distillation: " + "; ".join(problems))
