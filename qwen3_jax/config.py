"""The base configuration: every key an experiment can set, documented once."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from qwen3_jax.models.config import ModelConfig, model_config


def base_config(model: str = "qwen3-0.6b") -> ConfigDict:
  """Every key with its default. Experiments start from this and add stages."""
  config = ConfigDict()
  config.name = ""  # shown in logs and in the report
  config.seed = 0  # the only source of randomness: initialisation, data order, sampling

  # Any field of ModelConfig (qwen3_jax/models/config.py documents them).
  config.model = ConfigDict(dataclasses.asdict(model_config(model)))

  config.tokenizer = ConfigDict()
  config.tokenizer.path = ""  # folder or file: tokenizer.json, qwen.tiktoken or a SentencePiece .model; "" trains one
  config.tokenizer.train_vocab_size = 4096  # pieces of the SentencePiece BPE trained when path is ""
  config.tokenizer.train_megabytes = 8  # how much of the corpus the trainer reads

  config.mesh = ConfigDict()  # devices along each axis; one axis may be -1 (all that are left)
  config.mesh.data = 1  # replicas of the parameters
  config.mesh.fsdp = -1  # parameters, gradients and optimizer state sharded with the batch
  config.mesh.expert = 1  # experts
  config.mesh.context = 1  # sequence
  config.mesh.tensor = 1  # heads, feed-forward, vocabulary
  config.cpu_devices = 1  # virtual devices when JAX runs on the CPU

  config.data = ConfigDict()
  config.data.cache = ""  # where raw corpora are tokenised to; "" is <workdir>/data
  config.data.corpora = ConfigDict()  # corpus name -> corpus(...): everything a stage's mixture may name
  config.data.prepare_workers = 0  # processes that tokenise; 0 is one per core

  config.pipeline = ()  # names of the stages, in order
  config.stage = ""  # run only this stage of the pipeline, from where the one before it ended; "" runs all
  config.stages = ConfigDict()  # stage name -> pretrain_stage(...)

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1000  # steps between checkpoints
  config.checkpoint.keep = 2  # newest checkpoints kept in each stage
  config.log_every = 10  # steps between lines of metrics
  config.stall_seconds = 120  # warn when no step has finished for so long
  return config


def corpus(source: str, **changes: Any) -> ConfigDict:
  """One corpus. `source` is `kind:location`; qwen3_jax/data/sources.py lists the kinds."""
  config = ConfigDict()
  # e.g. "jsonl:/data/web/*.jsonl.zst", "python:" (this installation's own text), "prepared:/data/tokens".
  config.source = source
  config.text_field = "text"  # field that holds the text, for records
  config.domain = ""  # label for records that carry none; "" is the corpus's name
  config.language = ""  # likewise
  config.validation_fraction = 0.02  # share of documents (by hash) kept for validation
  config.limit_megabytes = 0  # raw text read from the source, in MB; 0 reads all
  config.update(changes)
  return config


def pretrain_stage(**changes: Any) -> ConfigDict:
  """One pre-training stage. A stage continues from the one before it in the pipeline, optimizer state included."""
  config = ConfigDict()
  config.kind = "pretrain"  # what kind of stage this is; fixed by the function that makes it
  config.sequence_length = 4096  # T
  config.batch_size = 256  # B: sequences per step over all devices and micro-batches
  config.micro_batches = 1  # gradient accumulation: the step's batch is cut into so many
  config.tokens = 0  # token budget; the stage runs tokens // (batch_size * sequence_length) steps
  config.rope_theta = 10_000.0  # RoPE base in this stage (QWEN3: 1e4 in S1 and S2, 1e6 in S3)
  config.mixture = ConfigDict()  # corpus name -> share of the tokens
  # ((min_length, max_length, share of the tokens), ...) on the lengths of pieces, which are documents cut at
  # sequence_length; () takes them as they come.
  config.length_buckets = ()

  # How the stage runs where that differs from the rest of the config; parameters move between stages as between runs.
  config.mesh = ConfigDict(dict.fromkeys(base_config().mesh, 0))  # devices along an axis; 0 is config.mesh's number
  config.remat = ""  # "" is config.model.remat

  config.optimizer = ConfigDict()
  config.optimizer.peak_lr = 3e-4  # learning rate after the warm-up
  config.optimizer.final_lr = 3e-5  # reached at the end of the stage when the schedule decays
  config.optimizer.schedule = "wsd"  # wsd (warm up, stay, decay), cosine or constant
  config.optimizer.warmup_steps = 0  # linear from 0; 0 starts at peak_lr
  config.optimizer.decay_fraction = 0.0  # wsd: last share of the stage that decays; 1.0 decays throughout
  config.optimizer.beta1 = 0.9  # Adam's mean of gradients
  config.optimizer.beta2 = 0.95  # Adam's mean of squared gradients
  config.optimizer.epsilon = 1e-8  # added to the root of the latter
  config.optimizer.weight_decay = 0.1  # decoupled; matrices only
  config.optimizer.clip_norm = 1.0  # global gradient norm; 0 does not clip
  config.optimizer.moment_dtype = "float32"  # of Adam's two means between steps
  config.optimizer.gradient_dtype = "float32"  # of gradients, from the backward pass and over micro-batches
  config.optimizer.offload = False  # the moments wait in the host's memory between steps

  # Expert counts of the balance loss with micro_batches > 1: exact (the whole batch's, a third more work) or running
  # (of the micro-batches so far in the step).
  config.balance_counts = "exact"
  config.z_loss = 0.0  # weight of log(Z)^2, keeps logits from drifting
  config.max_skipped_steps = 10  # non-finite steps in a row that are skipped before the run stops

  config.evaluate_every = 1000  # steps between validation passes (one always follows the last step)
  config.evaluate_batches = 8  # batches per validation domain
  config.sample_prompts = ()  # continued greedily at each validation pass, shown in the report
  config.sample_tokens = 48  # tokens of each continuation
  config.update(changes)
  return config


def stage_names(config: ConfigDict) -> list[str]:
  """The stages that a run with this config works on, in order."""
  return [config.stage] if config.stage else list(config.pipeline)


def stage_mesh(config: ConfigDict, stage: str) -> dict[str, int]:
  """Devices along each axis in a stage, as in `config.mesh`."""
  own = config.stages[stage].mesh
  return {axis: own[axis] or size for axis, size in config.mesh.items()}


def stage_model(config: ConfigDict, stage: str) -> ModelConfig:
  """The model as a stage trains it."""
  settings = config.stages[stage]
  return make_model_config(config, rope_theta=settings.rope_theta, remat=settings.remat or config.model.remat)


BALANCE_COUNTS = ("exact", "running")  # values of a stage's `balance_counts`
STAGE_KINDS = {"pretrain": pretrain_stage}  # value of a stage's `kind` -> the function that documents its keys


def make_model_config(config: ConfigDict, **changes: Any) -> ModelConfig:
  """The ModelConfig that `config.model` describes, with `changes` (e.g. a stage's rope_theta)."""
  return ModelConfig(**{**config.model.to_dict(), **changes})
