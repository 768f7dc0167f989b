"""EngineSettings: how many sequences at a time, how long, in which cache."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from qwen3_jax.models.config import ModelConfig


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

  def check(self, config: ModelConfig, mesh: Mesh | None) -> None:
    """Raises ValueError for what no engine for such a model, on such a mesh, can do."""
    problems = []
    if self.cache not in ("auto", "dense", "paged"):
      problems.append(f"cache={self.cache!r}, expected auto, dense or paged")
    for name in ("slots", "max_length", "steps", "prefill_rows", "prefill_length", "page_size"):
      if getattr(self, name) < 1:
        problems.append(f"{name}={getattr(self, name)}, expected at least 1")
    if mesh is not None:
      unused = [axis for axis in ("fsdp", "context") if mesh.shape[axis] > 1]
      if unused:
        problems.append(f"a mesh that splits {' and '.join(unused)}; decoding uses data, expert and tensor")
      if config.num_kv_heads % mesh.shape["tensor"]:
        problems.append(f"tensor={mesh.shape['tensor']} does not divide num_kv_heads={config.num_kv_heads}")
    if self.record_experts and not config.is_moe:
      problems.append("record_experts=True and a dense model")
    if problems:
      raise ValueError("Engine: " + "; ".join(problems))
