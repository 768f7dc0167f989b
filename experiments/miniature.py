"""The demo: a small Qwen3, dense or MoE, through S1 -> S2 -> S3 on text that a Python installation holds.

`model=dense` (the default) or `model=moe`. Nothing is downloaded: the tokenizer is trained on the same text. Everything
that trades quality against time on a laptop's CPU is a constant below.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import recipes
from qwen3_jax.config import base_config, corpus, pretrain_stage
from qwen3_jax.config_loading import parse_arg

VOCABULARY = 2048
# Qwen3's proportions: two heads to a key/value head, untied when MoE. So small that two cores train it in minutes.
DENSE = {
  "hidden_size": 128,
  "intermediate_size": 384,
  "num_layers": 4,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 32,
}
MOE = {**DENSE, "intermediate_size": 128, "num_experts": 8, "num_experts_per_token": 2, "tie_word_embeddings": False}

# A token costs about three times as much in the MoE (all its experts are small matrices): fewer steps.
STEPS = {"dense": {"s1": 500, "s2": 150, "s3": 120}, "moe": {"s1": 250, "s2": 80, "s3": 60}}
TOKENS_PER_STEP = 2048  # small: in so short a run more steps are worth more than smoother gradients
PEAK_LR = 3e-3
SEQUENCE = 128  # S1 and S2
LONG_SEQUENCE = 512  # S3: four times S1's
LENGTH_BUCKETS = ((256, 512, 0.75), (64, 256, 0.25))  # S3's of the report, 64 times shorter
# Shares of the tokens: S1 is general, S2 raises code as the report does for reasoning, S3 prefers what is long.
MIXTURES = {
  "s1": {"code": 0.35, "documentation": 0.30, "multilingual": 0.35},
  "s2": {"code": 0.60, "documentation": 0.25, "multilingual": 0.15},
  "s3": {"code": 0.55, "documentation": 0.25, "multilingual": 0.20},
}
PROMPTS = ("def __init__(self", "The following example shows", "Diese Seite")


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, model=("dense", "moe"))
  config = base_config()
  config.name = f"miniature-{arguments.model}"
  config.model.update(DENSE if arguments.model == "dense" else MOE)
  config.model.update(name=config.name, vocab_size=VOCABULARY, unroll_layers=True)  # unrolled is faster on a CPU
  config.tokenizer.train_vocab_size = VOCABULARY
  # One virtual device a core costs the least CPU time a token; each holds a whole copy of so small a model.
  config.cpu_devices = 2
  config.mesh.update(data=-1, fsdp=1)
  # Enough for all stages, so that tokens are read once; documents of 5% are kept, for the small domains' sake.
  for domain, megabytes in (("code", 16), ("documentation", 0), ("multilingual", 0)):
    config.data.corpora[domain] = corpus(f"python:{domain}", limit_megabytes=megabytes, validation_fraction=0.05)
  config.pipeline = ("s1", "s2", "s3")

  steps = STEPS[arguments.model]
  s1 = {"schedule": "wsd", "peak_lr": PEAK_LR, "final_lr": PEAK_LR, "warmup_steps": 20}
  s2 = {"schedule": "wsd", "peak_lr": PEAK_LR, "final_lr": PEAK_LR / 10, "decay_fraction": 1.0}
  s3 = {"schedule": "cosine", "peak_lr": PEAK_LR / 4, "final_lr": PEAK_LR / 40, "warmup_steps": 5}
  config.stages.s1 = _stage("s1", steps, SEQUENCE, 1e4, s1)
  config.stages.s2 = _stage("s2", steps, SEQUENCE, 1e4, s2)
  config.stages.s3 = _stage("s3", steps, LONG_SEQUENCE, 1e6, s3)
  config.stages.s3.length_buckets = LENGTH_BUCKETS
  config.checkpoint.every = 100
  return recipes.finish(config, arguments)


def _stage(
  name: str, steps: dict[str, int], sequence_length: int, rope_theta: float, optimizer: dict[str, Any]
) -> ConfigDict:
  return pretrain_stage(
    sequence_length=sequence_length,
    batch_size=TOKENS_PER_STEP // sequence_length,
    tokens=steps[name] * TOKENS_PER_STEP,
    rope_theta=rope_theta,
    mixture=MIXTURES[name],
    optimizer=optimizer,
    evaluate_every=100,
    evaluate_batches=8,
    sample_prompts=PROMPTS,
    sample_tokens=32,
  )
