"""Qwen3-30B-A3B (128 experts, 8 per token): S1 -> S2 -> S3."""

from experiments import recipes

# 2.73B active non-embedding parameters, 30T tokens: 7.8e23 operations. recipes.predicted_lr_and_batch gives a peak of
# 3.22e-4 and 19.1M tokens per step. The nearest power of two is 4,096 sequences, 16.8M tokens: 1.8M steps in S1.
# The law was fitted on dense models, and an expert sees 1/16 of the tokens: the first thing to check in a proxy run.
# For v5p:4x8x8. On several slices: mesh.data = slices.
SIZE = recipes.Size(
  "qwen3-30b-a3b", batch_size=4096, peak_lr=3.2e-4, devices=256, tokens_per_device=16384, expert_shards=4
)


def get_config(arg: str = ""):
  return recipes.size_config(SIZE, arg)
