"""Qwen3-32B: S1 -> S2 -> S3."""

from experiments import recipes

# 31.2B non-embedding parameters, 30T tokens: 6.4e24 operations. recipes.predicted_lr_and_batch gives a peak of
# 2.47e-4 and 38.0M tokens per step. The nearest power of two is 8,192 sequences, 33.6M tokens: 0.9M steps in S1.
# For v5p:8x8x8. On several slices: mesh.data = slices.
SIZE = recipes.Size("qwen3-32b", batch_size=8192, peak_lr=2.5e-4, devices=512, tokens_per_device=4096)


def get_config(arg: str = ""):
  return recipes.size_config(SIZE, arg)
