"""Qwen3-235B-A22B (128 experts, 8 per token): S1 -> S2 -> S3."""

from experiments import recipes

# 20.9B active non-embedding parameters, 30T tokens: 4.9e24 operations. recipes.predicted_lr_and_batch gives a peak of
# 2.56e-4 and 34.8M tokens per step. The nearest power of two is 8,192 sequences, 33.6M tokens: 0.9M steps in S1.
# The law was fitted on dense models, and an expert sees 1/16 of the tokens: the first thing to check in a proxy run.
# For v5p:4x8x8. On several slices: mesh.data = slices.
SIZE = recipes.Size(
  "qwen3-235b-a22b", batch_size=8192, peak_lr=2.6e-4, devices=256, tokens_per_device=4096, expert_shards=4
)


def get_config(arg: str = ""):
  return recipes.size_config(SIZE, arg)
