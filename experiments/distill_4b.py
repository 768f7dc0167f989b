"""Qwen3-4B by strong-to-weak distillation: S1 -> S2 -> S3, then off-policy and on-policy."""

from experiments import dense_4b, recipes


def get_config(arg: str = ""):
  return recipes.distillation_config(dense_4b.SIZE, arg, large_expert_shards=16)
