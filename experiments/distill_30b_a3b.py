"""Qwen3-30B-A3B by strong-to-weak distillation: S1 -> S2 -> S3, then off-policy and on-policy."""

from experiments import moe_30b_a3b, recipes


def get_config(arg: str = ""):
  return recipes.distillation_config(moe_30b_a3b.SIZE, arg, large_expert_shards=16)
