"""The demo: a small Qwen3, dense or MoE, through S1 -> S2 -> S3 on text that a Python installation holds.

`model=dense` (the default) or `model=moe`. Nothing is downloaded: the tokenizer is trained on the same text. Everything
that trades quality against time on a laptop's CPU is a constant below.
"""

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

STEPS = {"s1": 250, "s2": 80, "s3": 80}
TOKENS_PER_STEP = 4096  # small: the text is read about once, so steps are worth more than smooth gradients
PEAK_LR = 4e-3
SEQUENCE = 128  # S1 and S2
LONG_SEQUENCE = 512  # S3: four times S1's
LENGTH_BUCKETS = ((256, 512, 0.75), (64, 256, 0.25))  # S3's of the report, 64 times shorter
PROMPTS = ("def __init__(self", "The following example shows", "Returns the")


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, model=("dense", "moe"))
  config = base_config()
  config.name = f"miniature-{arguments.model}"
  config.model.update(DENSE if arguments.model == "dense" else MOE)
  config.model.update(name=config.name, vocab_size=VOCABULARY, unroll_layers=True)  # unrolled is faster on a CPU
  config.tokenizer.train_vocab_size = VOCABULARY
  # Virtual devices use the cores better than one device does; each holds a whole copy of so small a model.
  config.cpu_devices = 8
  config.mesh.update(data=-1, fsdp=1)
  config.data.corpora.python = corpus("python:", limit_megabytes=32)
  config.pipeline = ("s1", "s2", "s3")

  config.stages.s1 = _stage("s1", SEQUENCE, 1e4, schedule="wsd", peak_lr=PEAK_LR, final_lr=PEAK_LR, warmup_steps=20)
  config.stages.s2 = _stage(
    "s2", SEQUENCE, 1e4, schedule="wsd", peak_lr=PEAK_LR, final_lr=PEAK_LR / 10, decay_fraction=1.0
  )
  config.stages.s3 = _stage(
    "s3", LONG_SEQUENCE, 1e6, schedule="cosine", peak_lr=PEAK_LR / 4, final_lr=PEAK_LR / 40, warmup_steps=5
  )
  config.stages.s3.length_buckets = LENGTH_BUCKETS
  config.checkpoint.every = 50
  return recipes.finish(config, arguments)


def _stage(name: str, sequence_length: int, rope_theta: float, **optimizer) -> ConfigDict:
  return pretrain_stage(
    sequence_length=sequence_length,
    batch_size=TOKENS_PER_STEP // sequence_length,
    tokens=STEPS[name] * TOKENS_PER_STEP,
    rope_theta=rope_theta,
    mixture={"python": 1.0},
    optimizer=optimizer,
    evaluate_every=40,
    evaluate_batches=2,
    sample_prompts=PROMPTS,
    sample_tokens=32,
  )
