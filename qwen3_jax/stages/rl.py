"""A stage of reinforcement learning on verified problems (Qwen3 report, section 4.2)."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.batch import Batch
from qwen3_jax.checkpoint import Checkpointer, CheckpointError
from qwen3_jax.config import model_settings
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.cached import decoding_layout
from qwen3_jax.models.transformer import Parameters, from_parameters
from qwen3_jax.objectives.grpo import grpo
from qwen3_jax.objectives.grpo_settings import GRPO
from qwen3_jax.objectives.token_loss import token_log_probabilities
from qwen3_jax.placement import local_rows, to_devices
from qwen3_jax.rl.collector import Collector
from qwen3_jax.rl.entropy_control import EntropyControl
from qwen3_jax.rl.experience import take_rows
from qwen3_jax.rl.policy_terms import LogProbabilities, PolicyTerms
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.sharding import batch_sharding, replicated
from qwen3_jax.stages.program import stage_program, stage_seed
from qwen3_jax.stages.rollouts import assessor, make_asker, rollout_stage, stage_problems
from qwen3_jax.stages.stage import Stage
from qwen3_jax.train_program import RolloutFields, TrainProgram
from qwen3_jax.train_step import map_micro_batches
from qwen3_jax.workdir import Workdir


def make_program(config: ConfigDict, name: str) -> TrainProgram:
  """The train step of stage `name` of a checked config; opens nothing."""
  settings = config.stages[name]
  fields = RolloutFields(
    old=settings.minibatches * settings.epochs > 1,
    reference=settings.grpo.kl_coefficient > 0,
    experts=model_settings(config, name).num_experts > 0 and settings.routing_replay,
  )
  objective = grpo(GRPO(**settings.grpo, temperature=settings.rollout.temperature))
  return stage_program(config, name, objective, rollout=fields)


def make_stage(
  config: ConfigDict, name: str, tokenizer: Tokenizer, mesh: Mesh, workdir: Workdir, previous: str | None
) -> Stage:
  """Stage `name` of a checked config on `mesh`; `previous` is the stage it starts from, if any."""
  settings = config.stages[name]
  program = make_program(config, name)
  seed = stage_seed(config, name)
  trained, held_out = stage_problems(name, settings)
  asker = make_asker(settings, program, tokenizer, mesh)
  collector = Collector(
    asker=asker,
    order=ProblemOrder(trained, seed, settings.relearn),
    groups=settings.batch_size * settings.minibatches // settings.samples,
    samples=settings.samples,
    length=settings.sequence_length,
    waves=settings.waves,
    normalize_std=settings.normalize_std,
    overlong=settings.overlong,
    overlong_tokens=settings.overlong_tokens,
    experts=program.recorded_experts,
    modes=dict(settings.rollout.modes),
    seed=seed,
  )
  terms = PolicyTerms(
    EntropyControl(**settings.entropy),
    log_probabilities(program, settings.rollout.temperature, mesh),
    old=program.rollout is not None and program.rollout.old,
    reference=_reference(config, program, mesh, workdir, previous) if settings.grpo.kl_coefficient else None,
    batch_size=settings.batch_size,
  )
  assess = assessor(asker, held_out, settings, seed)
  return rollout_stage(config, name, program, collector, terms, assess, mesh, workdir, epochs=settings.epochs)


def log_probabilities(program: TrainProgram, temperature: float, mesh: Mesh) -> LogProbabilities:
  """As the train step computes them, a micro-batch at a time."""
  rows = local_rows(batch_sharding(mesh), program.batch_shape)

  def of_micro_batch(params: Parameters, batch: Batch) -> jax.Array:
    experts = None if batch.rollout is None else batch.rollout.experts
    model = from_parameters(program.model, params)
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids, experts=experts)
    return token_log_probabilities(hidden.final, hidden.head, batch.targets, temperature)[0]

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def of_batch(params: Parameters, batch: Batch) -> jax.Array:
    return map_micro_batches(functools.partial(of_micro_batch, params), batch, program.micro_batches)

  def call(params: Parameters, batch: Batch) -> np.ndarray:
    placed = to_devices(take_rows(batch, np.asarray(rows)), rows, batch_sharding(mesh), program.batch_shape)
    with jax.set_mesh(mesh):
      return np.asarray(of_batch(params, placed))

  return call


def _reference(
  config: ConfigDict, program: TrainProgram, mesh: Mesh, workdir: Workdir, previous: str | None
) -> Parameters:
  """What the stage starts from, frozen, in the dtypes that it computes in."""
  frozen = jax.jit(functools.partial(decoding_layout, program.model, stacked=True))
  if previous is None:
    return frozen(program.create_state(mesh, config.seed).params)
  checkpoints = Checkpointer(workdir.checkpoints(previous), keep=config.checkpoint.keep)
  try:
    restored = checkpoints.restore(program.abstract_state(mesh))
  finally:
    checkpoints.close()
  if restored is None:
    raise CheckpointError(f"the reference model is that of stage {previous!r}, which has no checkpoint in {workdir}")
  return frozen(restored.state.params)
