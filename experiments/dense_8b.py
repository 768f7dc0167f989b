"""Qwen3-8B: S1 -> S2 -> S3."""

from experiments import recipes

# 6.95B non-embedding parameters, 30T tokens: 1.5e24 operations. recipes.predicted_lr_and_batch gives a peak of
# 2.97e-4 and 23.5M tokens per step. The nearest power of two is 4,096 sequences, 16.8M tokens: 1.8M steps in S1.
# For v5p:4x8x8. On several slices: mesh.data = slices.
SIZE = recipes.Size("qwen3-8b", batch_size=4096, peak_lr=3.0e-4, devices=256, tokens_per_device=16384)


def get_config(arg: str = ""):
  return recipes.size_config(SIZE, arg)
