"""EngineSettings: how many sequences at a time, how long, in which cache."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EngineSettings:
  slots: int = 64  # sequences that are decoded at a time
  max_length: int = 4096  # of prompt and answer together
  steps: int = 8  # decoding steps between looks at what has ended, while requests wait; four times as many else
  prefill_rows: int = 8  # prompts that are prefilled at a time
  prefill_length: int = 512  # of their tokens; longer ones take several turns
  adjustments: bool = True  # whether requests may have penalties and biases, which take V numbers a slot
  cache: str = "auto"  # "dense", "paged"; auto: dense on a CPU
  page_size: int = 128  # tokens
  cache_dtype: str = ""  # of a paged cache, "int8" or "bfloat16"; "": the model's
  record_experts: bool = False  # of MoE models: whom each token went to, for routing replay
  cache_bytes: int = 0  # of each device that the cache may take; 0: room for max_length in every slot

  @property
  def most_steps(self) -> int:
    return 4 * self.steps
