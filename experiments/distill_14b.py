"""Qwen3-14B by strong-to-weak distillation: S1 -> S2 -> S3, then off-policy and on-policy."""

from experiments import dense_14b, recipes


def get_config(arg: str = ""):
  return recipes.distillation_config(dense_14b.SIZE, arg, large_expert_shards=16)
