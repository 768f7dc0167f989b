"""Qwen3-14B: S1 -> S2 -> S3."""

from experiments import recipes

# 13.2B non-embedding parameters, 30T tokens: 2.7e24 operations. recipes.predicted_lr_and_batch gives a peak of
# 2.76e-4 and 28.6M tokens per step. The nearest power of two is 8,192 sequences, 33.6M tokens: 0.9M steps in S1.
# For v5p:4x8x8. On several slices: mesh.data = slices.
SIZE = recipes.Size("qwen3-14b", batch_size=8192, peak_lr=2.8e-4, devices=256, tokens_per_device=8192)


def get_config(arg: str = ""):
  return recipes.size_config(SIZE, arg)
