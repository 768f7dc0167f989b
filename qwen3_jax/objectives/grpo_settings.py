"""GRPO: the options of the objective in `grpo.py`."""

from __future__ import annotations

import dataclasses

RATIOS = ("token", "sequence")
AGGREGATIONS = ("token", "sequence", "constant")


@dataclasses.dataclass(frozen=True)
class GRPO:
  clip_low: float = 0.2
  clip_high: float = 0.28  # larger than clip_low: unlikely tokens may become likely (DAPO, Yu et al. 2025, section 3.1)
  dual_clip: float = 3.0  # of tokens with a negative advantage, the loss is at most so many times it (Ye et al. 2020)
  ratio: str = "token"  # "sequence": the geometric mean over a sequence's tokens (GSPO, Zheng et al. 2025)
  # token: the mean over the tokens of the global batch; sequence: over sequences of the mean over their tokens;
  # constant: over sequences of the sum over their tokens / constant_length (Dr. GRPO, Liu et al. 2025).
  aggregation: str = "token"
  constant_length: int = 0  # tokens
  # Of k3, exp(d) - d - 1 with d the reference's log-probability less the model's (Schulman 2020); 0: no reference.
  kl_coefficient: float = 0.0
  # Tokens are weighted with the probability under the old policy over that under the sampler, truncated here: what
  # the two compute differs by rounding, or by a few updates (Yao et al. 2025). 0: not weighted.
  importance_cap: float = 2.0
  temperature: float = 1.0  # that tokens were sampled at
  sequences_per_row: int = 1  # at most

  def __post_init__(self):
    problems = []
    if self.ratio not in RATIOS:
      problems.append(f"ratio={self.ratio!r}, expected one of {', '.join(RATIOS)}")
    if self.aggregation not in AGGREGATIONS:
      problems.append(f"aggregation={self.aggregation!r}, expected one of {', '.join(AGGREGATIONS)}")
    if self.aggregation == "constant" and self.constant_length < 1:
      problems.append(f"constant_length={self.constant_length}, expected at least 1 with aggregation='constant'")
    if not 0 < self.clip_low <= 1 or self.clip_high <= 0:
      problems.append(f"clip_low={self.clip_low}, clip_high={self.clip_high}, expected within (0, 1] and above 0")
    if self.dual_clip and self.dual_clip <= 1:
      problems.append(f"dual_clip={self.dual_clip}, expected more than 1, or 0 for none")
    if self.importance_cap and self.importance_cap < 1:
      problems.append(f"importance_cap={self.importance_cap}, expected at least 1, or 0 for none")
    if self.kl_coefficient < 0 or self.temperature <= 0 or self.sequences_per_row < 1:
      problems.append(
        f"kl_coefficient={self.kl_coefficient}, temperature={self.temperature},"
        f" sequences_per_row={self.sequences_per_row}: expected at least 0, above 0, at least 1"
      )
    if problems:
      raise ValueError("GRPO: " + "; ".join(problems))
