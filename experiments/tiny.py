"""Any experiment, small: it then runs end to end on a laptop's CPU in a minute or two."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from qwen3_jax.config import ROLLOUT_KINDS

TINY_STEPS = 20
TINY_SEQUENCE = 512  # of the longest stage; the others keep their ratio to it
TINY_VOCABULARY = 1024
TINY_PEAK_LR = 3e-3  # of the stage with the highest; the others keep their ratio to it


def shrunk(config: ConfigDict) -> ConfigDict:
  """The same recipe, small: any experiment then runs end to end on a laptop's CPU in a minute or two.

  Stages, schedules, mixtures, remat, the ratios of sequence lengths, learning rates, heads and widths, and what makes
  the model dense or MoE stay; widths, depth, experts, steps, batch, sequences and data shrink, never grow.
  """
  config = config.copy_and_resolve_references()
  config.name = f"{config.name}-tiny"
  for model in (config.model, *config.models.values()):
    _tiny_model(model)
  for axis in config.mesh:
    config.mesh[axis] = 1
  config.mesh.fsdp = -1
  config.cpu_devices = 1
  config.start = ""  # of another shape
  vocabulary = min(config.tokenizer.train_vocab_size, config.model.vocab_size)
  config.tokenizer = {"path": "", "train_vocab_size": vocabulary, "train_megabytes": 1}
  config.data.prepare_workers = 1
  for settings in config.data.corpora.values():
    kind, _, location = settings.source.partition(":")
    if kind in ("traces", "chat", "written"):  # no text would do in their place
      # Files are not at hand, and so small a model has no right answers.
      if kind == "chat" or (kind == "written" and config.data.written[location].kind == "answers"):
        settings.source = "traces:0.5:cups:500:1"
      continue
    limit = settings.limit_megabytes if settings.source.startswith("python:") else 0
    # All corpora become the same text, prepared once.
    settings.update(source="python:", domain="text", limit_megabytes=min(limit or 1, 1), validation_fraction=0.05)
  for settings in config.data.written.values():
    settings.update(problems="cups:16:4:1-2", max_length=128, max_new_tokens=8)
    if settings.kind == "fusion":
      settings.direct_answers = "cups:200:5:1-2"
      settings.fusion.update(thinking_share=0.0, most_tokens=0)
  for settings in config.evaluations.values():
    settings.tasks = tuple(f"{task.partition(':')[0]}:cups:4:3:1-2" for task in settings.tasks)
    settings.options = ("--dtype=float32", "--max_new_tokens=8", "--dialogs=2", "--budgets=0,4", "--temperature=1")
  config.checkpoint.every = TINY_STEPS // 2
  config.log_every = 5

  stages = config.stages.values()
  shrink = max(1.0, max(stage.sequence_length for stage in stages) / TINY_SEQUENCE)
  lr_scale = TINY_PEAK_LR / max(stage.optimizer.peak_lr for stage in stages)
  for stage in stages:
    writes = stage.kind in ROLLOUT_KINDS
    steps = stage.steps if writes else stage.tokens // (stage.batch_size * stage.sequence_length)
    _tiny_stage(stage, steps, shrink, lr_scale)
    (_tiny_rollouts if writes else _tiny_packed)(stage, min(steps, TINY_STEPS), shrink)
    for settings in stage.get("teachers", {}).values():  # none is at hand but an earlier stage
      settings.update(path=f"stage:{config.pipeline[0]}", model="", dtype="float32", offload=False)
      settings.mesh.update(dict.fromkeys(settings.mesh, 0))
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


def _tiny_rollouts(stage: ConfigDict, steps: int, shrink: float) -> None:
  stage.steps = steps
  if stage.problems.startswith("jsonl:"):
    stage.update(problems="cups:100:2", validation_problems="cups:10:3")
  stage.update(samples=min(stage.samples, 4), evaluate_problems=4, evaluate_samples=2)
  stage.rollout.update(slots=8, max_new_tokens=max(4, round(stage.rollout.max_new_tokens / shrink)))
  if stage.kind == "rl":
    stage.update(waves=min(stage.waves, 2), overlong_tokens=round(stage.overlong_tokens / shrink))
