"""Qwen3-0.6B: S1 -> S2 -> S3."""

from experiments import recipes

# 0.44B non-embedding parameters, 30T tokens: 1.6e23 operations. recipes.predicted_lr_and_batch gives a peak of
# 3.91e-4 and 11.5M tokens per step. The nearest power of two is 2,048 sequences, 8.4M tokens: 3.6M steps in S1.
# For v5p:4x4x4. On several slices: mesh.data = slices.
SIZE = recipes.Size("qwen3-0.6b", batch_size=2048, peak_lr=3.9e-4, devices=64, tokens_per_device=16384)


def get_config(arg: str = ""):
  return recipes.size_config(SIZE, arg)
