"""The pre-training recipe that the eight sizes share, and the arguments every experiment takes."""

from __future__ import annotations

import math
from types import SimpleNamespace

from ml_collections import ConfigDict

from qwen3_jax.config import base_config, corpus, pretrain_stage, rl_stage, sft_stage
from qwen3_jax.models.config import ModelConfig

BILLION, TRILLION = 10**9, 10**12

# Of every experiment: stage=s2 runs that stage alone; tiny shrinks the recipe to a laptop.
ARGUMENTS = {"stage": "", "tiny": False}
# Of the eight sizes, too: the folder that holds the prepared corpora by name, and the released tokenizer.
# post=rl goes on after S3, as the report's flagships do.
SIZE_ARGUMENTS = {**ARGUMENTS, "corpora": "corpora", "tokenizer": "tokenizer", "post": ("none", "rl")}

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


def pretraining(
  model: str,
  arguments: SimpleNamespace,
  *,
  batch_size: int,
  peak_lr: float,
  devices: int,
  tokens_per_device: int,
  expert_shards: int = 1,
) -> ConfigDict:
  """S1 -> S2 -> S3 (report, section 3.2) for one of the eight sizes.

  `batch_size` counts sequences of 4,096 tokens; S3 keeps the tokens per step with 8 times fewer, 8 times longer ones.

  A step is cut into micro-batches so that each of `devices` holds `tokens_per_device` at a time: all that still lets it
  keep the results of the large matmuls, so that next to nothing is computed twice. Sequences of S3 are longer than
  that and split over the mesh's context axis. docs/performance.md has what the TPU compiler says of each size.
  """
  micro_batches = max(1, batch_size * 4096 // (devices * tokens_per_device))
  config = base_config(model)
  config.name = model
  config.model.dtype = "bfloat16"  # activations; parameters, moments, softmax, router and loss stay float32
  config.model.remat = "dots"
  config.mesh.fsdp = -1
  config.mesh.expert = expert_shards
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
    mesh={"context": max(1, 32_768 // tokens_per_device)},
    # From where S2 ended down to a hundredth of the peak; a short warm-up, as the changed RoPE base disturbs attention.
    optimizer={"schedule": "cosine", "peak_lr": peak_lr / 10, "final_lr": peak_lr / 100, "warmup_steps": 200},
    **common,
  )
  if arguments.post == "rl":
    reasoning(config, arguments, devices=devices, tokens_per_device=tokens_per_device)
  return config


def reasoning(config: ConfigDict, arguments: SimpleNamespace, *, devices: int, tokens_per_device: int) -> None:
  """Long-CoT cold start, then reasoning RL (report, sections 4.1 and 4.2).

  The folder of corpora holds cold_start.jsonl, conversations that `curation.cold_start` wrote, and reasoning_rl.jsonl
  and reasoning_validation.jsonl, problems that `select_queries` chose: 3,995 in the report. It says that the cold start
  is small in samples and steps, that batches are large with many rollouts a query, that updates are off-policy, and
  that RL took 170 steps; the rest is our choice.
  """
  context = max(1, 32_768 // tokens_per_device)
  long = {"sequence_length": 32_768, "mesh": {"context": context}}
  micro_batches = lambda batch_size: max(1, batch_size * 32_768 // (devices * tokens_per_device))
  config.data.corpora.cold_start = corpus(f"chat:{arguments.corpora}/cold_start.jsonl")
  config.pipeline += ("cold_start", "reasoning_rl")
  balance = {"balance_counts": "running"} if config.model.num_experts else {}
  config.stages.cold_start = sft_stage(
    **long,
    batch_size=512,
    micro_batches=micro_batches(512),
    tokens=200 * 512 * 32_768,
    mixture={"cold_start": 1.0},
    optimizer={"schedule": "cosine", "peak_lr": 1e-5, "final_lr": 1e-6, "warmup_steps": 10},
    evaluate_every=50,
    **balance,
  )
  config.stages.reasoning_rl = rl_stage(
    **long,
    problems=f"jsonl:{arguments.corpora}/reasoning_rl.jsonl",
    validation_problems=f"jsonl:{arguments.corpora}/reasoning_validation.jsonl",
    batch_size=512,
    micro_batches=micro_batches(512),
    minibatches=4,  # 128 problems with 16 answers each
    samples=16,
    steps=4 * 170,
    evaluate_every=40,
    overlong="penalize",
    overlong_tokens=4096,
    rollout={"max_new_tokens": 30_720, "slots": 1024, "staleness": 1},
    entropy={"gain": 0.001, "maximum": 0.01},
    optimizer={"schedule": "constant", "peak_lr": 1e-6, "final_lr": 0.0, "warmup_steps": 10, "weight_decay": 0.0},
    **balance,
  )


def finish(config: ConfigDict, arguments: SimpleNamespace) -> ConfigDict:
  """Applies `tiny` and `stage` to an experiment; the last line of every get_config."""
  if arguments.tiny:
    config = tiny(config)
  config.stage = arguments.stage
  return config


TINY_STEPS = 20
TINY_SEQUENCE = 512  # of the longest stage; the others keep their ratio to it
TINY_VOCABULARY = 1024
TINY_PEAK_LR = 3e-3  # of the stage with the highest; the others keep their ratio to it


def tiny(config: ConfigDict) -> ConfigDict:
  """The same recipe, small: any experiment then runs end to end on a laptop's CPU in a minute or two.

  Stages, schedules, mixtures, remat, the ratios of sequence lengths, learning rates, heads and widths, and what makes
  the model dense or MoE stay; widths, depth, experts, steps, batch, sequences and data shrink, never grow.
  """
  config = config.copy_and_resolve_references()
  config.name = f"{config.name}-tiny"
  _tiny_model(config.model)
  for axis in config.mesh:
    config.mesh[axis] = 1
  config.mesh.fsdp = -1
  config.cpu_devices = 1
  vocabulary = min(config.tokenizer.train_vocab_size, TINY_VOCABULARY)
  config.tokenizer = {"path": "", "train_vocab_size": vocabulary, "train_megabytes": 1}
  config.data.prepare_workers = 1
  for settings in config.data.corpora.values():
    if settings.source.startswith(("traces:", "chat:")):  # no text would do in their place
      settings.source = settings.source if settings.source.startswith("traces:") else "traces:0.5:cups:500:1"
      continue
    limit = settings.limit_megabytes if settings.source.startswith("python:") else 0
    # All corpora become the same text, prepared once.
    settings.update(source="python:", domain="text", limit_megabytes=min(limit or 1, 1), validation_fraction=0.05)
  config.checkpoint.every = TINY_STEPS // 2
  config.log_every = 5

  stages = config.stages.values()
  shrink = max(1.0, max(stage.sequence_length for stage in stages) / TINY_SEQUENCE)
  lr_scale = TINY_PEAK_LR / max(stage.optimizer.peak_lr for stage in stages)
  for stage in stages:
    steps = stage.steps if stage.kind == "rl" else stage.tokens // (stage.batch_size * stage.sequence_length)
    _tiny_stage(stage, steps, shrink, lr_scale)
    (_tiny_rl if stage.kind == "rl" else _tiny_packed)(stage, min(steps, TINY_STEPS), shrink)
  return config


def _tiny_model(model: ConfigDict) -> None:
  heads = min(model.num_heads, 4)
  kv_heads = max(1, heads * model.num_kv_heads // model.num_heads)
  hidden = min(model.hidden_size, 64)
  # The ratio of feed-forward to hidden stays, to a multiple of 16.
  feed_forward = 16 * max(1, round(hidden * model.intermediate_size / model.hidden_size / 16))
  model.update(
    name=f"{model.name}-tiny",
    vocab_size=min(model.vocab_size, TINY_VOCABULARY),
    num_layers=min(model.num_layers, 2),
    hidden_size=hidden,
    intermediate_size=min(model.intermediate_size, feed_forward),
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=min(model.head_dim, 16),
    num_experts=min(model.num_experts, 8),
    num_experts_per_token=min(model.num_experts_per_token, 2),
    dtype="float32",  # bfloat16 is slower on a CPU
  )


def _tiny_stage(stage: ConfigDict, steps: int, shrink: float, lr_scale: float) -> None:
  """What all kinds of stages have, of one that had `steps`."""
  new_steps = min(steps, TINY_STEPS)
  optimizer = stage.optimizer
  warmup = math.ceil(optimizer.warmup_steps * new_steps / steps) if steps else 0
  batch_size = min(stage.batch_size, 8)
  length = max(8, round(stage.sequence_length / shrink))
  stage.mesh.update(dict.fromkeys(stage.mesh, 0))
  stage.update(
    sequence_length=length,
    batch_size=batch_size,
    micro_batches=math.gcd(batch_size, min(stage.micro_batches, 2)),
    evaluate_every=TINY_STEPS // 2,
  )
  optimizer.update(
    peak_lr=optimizer.peak_lr * lr_scale,
    final_lr=optimizer.final_lr * lr_scale,
    # A scaled-down warm-up of one step would be none.
    warmup_steps=max(warmup, min(optimizer.warmup_steps, new_steps // 10)),
  )


def _tiny_packed(stage: ConfigDict, steps: int, shrink: float) -> None:
  length = stage.sequence_length
  stage.update(
    tokens=steps * stage.batch_size * length,
    length_buckets=tuple(
      (round(low / shrink), min(round(high / shrink), length), share) for low, high, share in stage.length_buckets
    ),
    evaluate_batches=1,
    sample_tokens=min(stage.sample_tokens, 8),
  )


def _tiny_rl(stage: ConfigDict, steps: int, shrink: float) -> None:
  stage.steps = steps
  if stage.problems.startswith("jsonl:"):
    stage.update(problems="cups:100:2", validation_problems="cups:10:3")
  stage.update(samples=4, evaluate_problems=4, evaluate_samples=2, waves=min(stage.waves, 2))
  stage.rollout.update(slots=8, max_new_tokens=max(4, round(stage.rollout.max_new_tokens / shrink)))
  stage.overlong_tokens = round(stage.overlong_tokens / shrink)
