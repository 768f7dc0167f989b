"""Next-token prediction on packed documents: pre-training (Qwen3 report, section 3) and supervised fine-tuning."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.batch import Batch
from qwen3_jax.data.corpora import open_mixture
from qwen3_jax.data.pipeline import BatchIterator, train_batches, validation_batches
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.greedy import greedy_continuation
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.objectives.distillation import next_token_with_teacher
from qwen3_jax.objectives.next_token import next_token
from qwen3_jax.optimizer import make_schedule
from qwen3_jax.placement import local_rows
from qwen3_jax.sharding import batch_sharding
from qwen3_jax.stages.program import stage_program, stage_seed
from qwen3_jax.stages.rollouts import assessor, make_asker, stage_problems
from qwen3_jax.stages.stage import Assess, Sample, Stage
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.train_state import TrainState


class PackedBatches:
  """The batch source of offline stages: a grain iterator, blind to the parameters."""

  def __init__(self, iterator: BatchIterator):
    self._iterator = iterator

  def next_batch(self, state: TrainState) -> Batch:
    return next(self._iterator)

  def get_state(self) -> dict:
    return self._iterator.get_state()

  def set_state(self, state: dict) -> None:
    self._iterator.set_state(state)

  def metrics(self) -> dict[str, float]:
    return {}

  def close(self) -> None:
    self._iterator.close()


def make_program(config: ConfigDict, name: str) -> TrainProgram:
  """The train step of stage `name` of a checked config; opens nothing."""
  settings = config.stages[name]
  top_k = settings.get("teacher_top_k", 0)
  if not top_k:
    return stage_program(config, name, next_token(settings.z_loss))
  return stage_program(
    config, name, next_token_with_teacher(settings.z_loss, settings.teacher_weight), top_predictions=top_k
  )


def make_stage(config: ConfigDict, name: str, corpora: dict[str, Path], tokenizer: Tokenizer, mesh: Mesh) -> Stage:
  """Stage `name` of a checked config on `mesh`; `corpora` gives the folder of each prepared corpus."""
  settings = config.stages[name]
  program = make_program(config, name)
  B, T, V = settings.batch_size, settings.sequence_length, program.model.vocab_size
  steps = settings.tokens // (B * T)
  rows = local_rows(batch_sharding(mesh), program.batch_shape)
  iterator = train_batches(
    open_mixture(settings.mixture, corpora),
    sequence_length=T,
    batch_size=B,
    seed=stage_seed(config, name),
    length_buckets=settings.length_buckets,
    rows=rows,
    top_k=program.top_predictions,
  )
  validation = validation_batches(
    {corpus: PreparedCorpus.open(corpora[corpus], "validation") for corpus in settings.mixture},
    sequence_length=T,
    batch_size=B,
    num_batches=settings.evaluate_batches,
    rows=rows,
    top_k=program.top_predictions,
  )
  return Stage(
    name=name,
    program=program,
    schedule=make_schedule(settings.optimizer, steps),
    steps=steps,
    max_skipped_steps=settings.max_skipped_steps,
    batches=PackedBatches(iterator),
    evaluate_every=settings.evaluate_every,
    validation=validation,
    assess=_assessor(name, settings, program, tokenizer, mesh),
    facts={f"unigram_entropy/{domain}": unigram_entropy(batches, V) for domain, batches in validation.items()},
    carries_optimizer=settings.kind == "pretrain",
  )


def unigram_entropy(batches: list[Batch], vocab_size: int) -> float:
  """Entropy in nats per token of the targets' own frequencies: the loss of the best model that ignores context.

  `batches` are this process's rows; the frequencies are those of all processes, which must make the same calls.
  """
  targets = np.concatenate([np.asarray(batch.targets)[np.asarray(batch.loss_weights) > 0] for batch in batches])
  counts = np.bincount(targets, minlength=vocab_size).astype(np.int32)
  if jax.process_count() > 1:  # rows that several processes hold count as often; all rows do
    counts = np.sum(multihost_utils.process_allgather(counts), axis=0)
  counts = counts[counts > 0].astype(np.float64)
  total = np.sum(counts)
  return math.log(total) - float(np.sum(counts * np.log(counts)) / total)


def _assessor(name: str, settings: ConfigDict, program: TrainProgram, tokenizer: Tokenizer, mesh: Mesh) -> Assess:
  """Continues the stage's prompts, and answers its problems."""
  prompts, new_tokens = tuple(settings.sample_prompts), settings.sample_tokens
  answer: Assess = lambda params: ({}, [])
  if settings.get("validation_problems"):
    _, held_out = stage_problems(name, settings)
    answer = assessor(make_asker(settings, program, tokenizer, mesh), held_out, settings, zlib.crc32(name.encode()))

  def assess(params: Parameters) -> tuple[dict[str, float], list[Sample]]:
    found, samples = answer(params)
    if not prompts:
      return found, samples
    written = greedy_continuation(program.model, params, [tokenizer.encode(prompt) for prompt in prompts], new_tokens)
    ends = [ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids) for ids in written]
    continued = [Sample(prompt, tokenizer.decode(ids[:end])) for prompt, ids, end in zip(prompts, written, ends)]
    return found, [*continued, *samples]

  return assess
