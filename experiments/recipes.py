"""The pre-training recipe that the eight sizes share, and the arguments every experiment takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import post_training, tiny
from qwen3_jax.config import base_config, corpus, pretrain_stage
from qwen3_jax.config_loading import parse_arg
from qwen3_jax.models.config import ModelConfig

BILLION, TRILLION = 10**9, 10**12

# Of every experiment: stage=s2 runs that stage alone; tiny shrinks the recipe to a laptop.
ARGUMENTS = {"stage": "", "tiny": False}
# Of the eight sizes, too: the folder that holds the prepared corpora by name, and the released tokenizer.
# post=rl goes on after S3, as the report's flagships do.
SIZE_ARGUMENTS = {**ARGUMENTS, "corpora": "corpora", "tokenizer": "tokenizer", "post": ("none", "rl")}
# Of the distilled sizes: the folder of the teacher's checkpoint, and which of the two flagships it is.
DISTILLATION_ARGUMENTS = {
  **ARGUMENTS,
  "corpora": "corpora",
  "tokenizer": "tokenizer",
  "teacher": "teacher",
  "teacher_size": ("235b", "32b"),
}

# Shares of the tokens by domain. The report names the domains and says that S2 raises STEM, code, reasoning and
# synthetic data; it publishes no shares, so these are our choice. `multilingual` is everything but English and Chinese.
S1_MIXTURE = {
  "web": 0.45,
  "multilingual": 0.20,
  "code": 0.13,
  "stem": 0.08,
  "pdf": 0.07,
  "synthetic": 0.05,
  "reasoning": 0.02,
}
S2_MIXTURE = {
  "web": 0.15,
  "multilingual": 0.12,
  "code": 0.25,
  "stem": 0.18,
  "pdf": 0.05,
  "synthetic": 0.15,
  "reasoning": 0.10,
}
# S3: `long` holds what is long by nature: books, whole repositories, long PDFs.
S3_MIXTURE = {"long": 0.55, "pdf": 0.20, "code": 0.15, "stem": 0.05, "reasoning": 0.05}
S3_LENGTH_BUCKETS = ((16_384, 32_768, 0.75), (4_096, 16_384, 0.25))  # report, section 3.2


def predicted_lr_and_batch(model: ModelConfig, tokens: float, sequence_length: int = 4096) -> tuple[float, float]:
  """Peak learning rate and tokens per step that a scaling law gives for a training budget.

  The law of DeepSeek LLM (Bi et al. 2024, section 3): with compute C = M * tokens and M the floating-point operations
  of a token, attention included and embeddings not, lr = 0.3118 * C**-0.1250 and batch = 0.2920 * C**0.3271. Fitted on
  small dense models and used by its authors for 7B and 67B at 2T tokens (up to C = 1e24);
  larger budgets extrapolate. For MoE, M counts the active parameters. Qwen3's own laws are not published.
  """
  embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
  attention = 12 * model.num_layers * model.num_heads * model.head_dim * sequence_length
  compute = (6 * (model.active_parameter_count() - embeddings) + attention) * tokens
  return 0.3118 * compute**-0.1250, 0.2920 * compute**0.3271


class Size(NamedTuple):
  """One of the eight sizes on the slice it is meant for.

  A step is cut into micro-batches so that each of `devices` holds `tokens_per_device` at a time: all that still lets it
  keep the results of the large matmuls, so that next to nothing is computed twice. Longer sequences are split over the
  mesh's context axis. docs/performance.md has what the TPU compiler says of each size.
  """

  model: str
  batch_size: int  # of pre-training, in sequences of 4,096 tokens
  peak_lr: float  # of pre-training
  devices: int
  tokens_per_device: int
  expert_shards: int = 1

  def context(self, sequence_length: int) -> int:
    """Devices that share a sequence."""
    return max(1, sequence_length // self.tokens_per_device)

  def micro_batches(self, batch_size: int, sequence_length: int) -> int:
    """Of a step of so many sequences."""
    return max(1, batch_size * sequence_length // (self.devices * self.tokens_per_device))


def size_config(size: Size, arg: str) -> ConfigDict:
  """The experiment of a size."""
  arguments = parse_arg(arg, **SIZE_ARGUMENTS)
  config = pretraining(size, arguments)
  if arguments.post == "rl":
    post_training.reasoning(config, size, arguments.corpora)
  return finish(config, arguments)


def distillation_config(size: Size, arg: str, large_expert_shards: int) -> ConfigDict:
  """The experiment of a small size that learns to reason from a large one (report, section 4.5).

  `large_expert_shards`: devices that split the experts of a 235B teacher.
  """
  arguments = parse_arg(arg, **DISTILLATION_ARGUMENTS)
  config = pretraining(size, arguments)
  config.name = f"distill-{size.model}"
  post_training.distillation(config, size, arguments, large_expert_shards)
  return finish(config, arguments)


def pretraining(size: Size, arguments: SimpleNamespace) -> ConfigDict:
  """S1 -> S2 -> S3 (report, section 3.2).

  S3 keeps the tokens per step, with 8 times fewer, 8 times longer sequences.
  """
  batch_size, peak_lr = size.batch_size, size.peak_lr
  micro_batches = size.micro_batches(batch_size, 4096)
  config = base_config(size.model)
  config.name = size.model
  config.model.dtype = "bfloat16"  # activations; parameters, moments, softmax, router and loss stay float32
  config.model.remat = "dots"
  config.mesh.fsdp = -1
  config.mesh.expert = size.expert_shards
  config.tokenizer.path = arguments.tokenizer
  for name in sorted({*S1_MIXTURE, *S2_MIXTURE, *S3_MIXTURE}):
    config.data.corpora[name] = corpus(f"prepared:{arguments.corpora}/{name}")
  config.pipeline = ("s1", "s2", "s3")

  common = {"evaluate_every": 5000, "sample_prompts": ("The theory of relativity", "def fibonacci(n):", "长城是")}
  if config.model.num_experts:  # exact counts would take a forward pass ahead of the micro-batches
    common["balance_counts"] = "running"
  config.stages.s1 = pretrain_stage(
    sequence_length=4096,
    batch_size=batch_size,
    micro_batches=micro_batches,
    tokens=30 * TRILLION,  # ">30T"
    rope_theta=1e4,
    mixture=S1_MIXTURE,
    # Warm up, then stay: the decay belongs to S2. 2,000 steps are under 0.2% of S1.
    optimizer={"schedule": "wsd", "peak_lr": peak_lr, "final_lr": peak_lr, "warmup_steps": 2000},
    **common,
  )
  config.stages.s2 = pretrain_stage(
    sequence_length=4096,
    batch_size=batch_size,
    micro_batches=micro_batches,
    tokens=5 * TRILLION,  # "about 5T"
    rope_theta=1e4,
    mixture=S2_MIXTURE,
    # "Accelerated decay": from the peak to a tenth of it over S2 alone, all of which decays.
    optimizer={"schedule": "wsd", "peak_lr": peak_lr, "final_lr": peak_lr / 10, "decay_fraction": 1.0},
    **common,
  )
  config.stages.s3 = pretrain_stage(
    sequence_length=32_768,
    batch_size=batch_size // 8,
    micro_batches=micro_batches,
    tokens=300 * BILLION,  # "hundreds of billions"
    rope_theta=1e6,  # ABF (Xiong et al. 2023)
    mixture=S3_MIXTURE,
    length_buckets=S3_LENGTH_BUCKETS,
    mesh={"context": size.context(32_768)},
    # From where S2 ended down to a hundredth of the peak; a short warm-up, as the changed RoPE base disturbs attention.
    optimizer={"schedule": "cosine", "peak_lr": peak_lr / 10, "final_lr": peak_lr / 100, "warmup_steps": 200},
    **common,
  )
  return config


def finish(config: ConfigDict, arguments: SimpleNamespace) -> ConfigDict:
  """Applies `tiny` and `stage` to an experiment; the last line of every get_config."""
  if arguments.tiny:
    config = tiny.shrunk(config)
  config.stage = arguments.stage
  return config
