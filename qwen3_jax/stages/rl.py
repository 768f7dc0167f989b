"""A stage of reinforcement learning on verified problems (Qwen3 report, section 4.2)."""

from __future__ import annotations

import functools
import zlib

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.batch import Batch
from qwen3_jax.checkpoint import Checkpointer, CheckpointError
from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.cached import decoding_layout
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, from_parameters
from qwen3_jax.objectives.grpo import grpo
from qwen3_jax.objectives.grpo_settings import GRPO
from qwen3_jax.objectives.token_loss import token_log_probabilities
from qwen3_jax.optimizer import make_schedule
from qwen3_jax.placement import local_rows, to_devices
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.rewards.environment import ProblemEnvironment
from qwen3_jax.rl.asking import Answer, Asker, rollout_settings, summary
from qwen3_jax.rl.collector import Collector
from qwen3_jax.rl.entropy_control import EntropyControl
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.rl.rollout_batches import LogProbabilities, RolloutBatches
from qwen3_jax.rollout.decoding_mesh import decoding_mesh
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.sharding import batch_sharding, make_mesh
from qwen3_jax.stages.program import stage_program
from qwen3_jax.stages.stage import Sample, Stage
from qwen3_jax.train_program import RolloutFields, TrainProgram
from qwen3_jax.train_step import split_micro_batches
from qwen3_jax.workdir import Workdir

_SHOWN = 4  # answers of an evaluation


def make_program(config: ConfigDict, name: str) -> TrainProgram:
  """The train step of stage `name` of a checked config; opens nothing."""
  settings = config.stages[name]
  fields = RolloutFields(
    old=settings.minibatches * settings.epochs > 1,
    reference=settings.grpo.kl_coefficient > 0,
    experts=config.model.num_experts > 0 and settings.routing_replay,
  )
  objective = grpo(GRPO(**settings.grpo, temperature=settings.rollout.temperature))
  return stage_program(config, name, objective, fields)


def make_stage(
  config: ConfigDict, name: str, tokenizer: Tokenizer, mesh: Mesh, workdir: Workdir, previous: str | None
) -> Stage:
  """Stage `name` of a checked config on `mesh`; `previous` is the stage it starts from, if any."""
  if jax.process_count() > 1:
    raise DataError(f"stages.{name}: reinforcement learning runs in one process, there are {jax.process_count()}")
  settings = config.stages[name]
  program = make_program(config, name)
  seed = zlib.crc32(f"{config.seed}/{name}".encode())
  held_out = _problems(name, "validation_problems", settings.validation_problems)
  held_out = held_out[: settings.evaluate_problems]
  trained = _problems(name, "problems", settings.problems)
  known = {problem.prompt for problem in held_out}
  asker = _asker(settings, program, tokenizer, mesh)
  collector = Collector(
    asker=asker,
    order=ProblemOrder([problem for problem in trained if problem.prompt not in known], seed, settings.relearn),
    groups=settings.batch_size * settings.minibatches // settings.samples,
    samples=settings.samples,
    length=settings.sequence_length,
    waves=settings.waves,
    normalize_std=settings.normalize_std,
    overlong=settings.overlong,
    overlong_tokens=settings.overlong_tokens,
    experts=program.recorded_experts,
    seed=seed,
  )
  control = settings.entropy
  batches = RolloutBatches(
    collector,
    EntropyControl(control.target, control.rise, control.gain, control.minimum, control.maximum, control.coefficient),
    steps=settings.steps,
    batch_size=settings.batch_size,
    epochs=settings.epochs,
    staleness=settings.rollout.staleness,
    rows=local_rows(batch_sharding(mesh), program.batch_shape),
    log_probabilities=log_probabilities(program, settings.rollout.temperature, mesh),
    reference=_reference(config, program, mesh, workdir, previous) if settings.grpo.kl_coefficient else None,
    folder=workdir.stage(name) / "rollouts",
    keep=config.checkpoint.keep,
    seed=seed,
  )
  return Stage(
    name=name,
    program=program,
    schedule=make_schedule(settings.optimizer, settings.steps),
    steps=settings.steps,
    max_skipped_steps=settings.max_skipped_steps,
    batches=batches,
    evaluate_every=settings.evaluate_every,
    validation={},
    assess=functools.partial(_assess, asker, held_out, settings.evaluate_samples, seed),
    facts={},
    carries_optimizer=False,
  )


def _problems(stage: str, key: str, spec: str) -> list[Problem]:
  if not spec:
    return []
  try:
    return open_problems(spec)
  except (DataError, ImportError, ValueError) as error:
    raise DataError(f"stages.{stage}.{key}: {error}") from error


def _asker(settings: ConfigDict, program: TrainProgram, tokenizer: Tokenizer, mesh: Mesh) -> Asker:
  rollout = settings.rollout
  engine = Engine(
    program.model,
    rollout_settings(
      rollout.slots,
      settings.sequence_length,
      record_experts=program.recorded_experts is not None,
      cache_bytes=rollout.cache_bytes,
    ),
    mesh=_engine_mesh(program.model, mesh),
    thinking=ThinkingTokens.of(tokenizer),
  )
  return Asker(
    engine=engine,
    tokenizer=tokenizer,
    environment=functools.partial(ProblemEnvironment, format_reward=settings.format_reward),
    sampling=SamplingParams(temperature=rollout.temperature),
    max_new_tokens=rollout.max_new_tokens,
    thinking_budget=None if rollout.thinking_budget < 0 else rollout.thinking_budget,
    enable_thinking=rollout.enable_thinking,
  )


def _engine_mesh(model: ModelConfig, mesh: Mesh) -> Mesh | None:
  """Virtual devices of a CPU share its memory: each decodes slots of its own with all of the parameters."""
  if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
    return make_mesh({"data": mesh.size}, list(mesh.devices.flat))
  return decoding_mesh(model, mesh)


def log_probabilities(program: TrainProgram, temperature: float, mesh: Mesh) -> LogProbabilities:
  """As the train step computes them, a micro-batch at a time."""
  rows = local_rows(batch_sharding(mesh), program.batch_shape)

  def of_micro_batch(params: Parameters, batch: Batch) -> jax.Array:
    experts = None if batch.rollout is None else batch.rollout.experts
    model = from_parameters(program.model, params)
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids, experts=experts)
    return token_log_probabilities(hidden.final, hidden.head, batch.targets, temperature)[0]

  @jax.jit
  def of_batch(params: Parameters, batch: Batch) -> jax.Array:
    if program.micro_batches == 1:
      return of_micro_batch(params, batch)
    parts = split_micro_batches(batch, program.micro_batches)
    found = jax.lax.map(functools.partial(of_micro_batch, params), parts)
    return found.swapaxes(0, 1).reshape(program.batch_shape)

  def call(params: Parameters, batch: Batch) -> np.ndarray:
    placed = to_devices(batch, rows, batch_sharding(mesh), program.batch_shape)
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


def _assess(
  asker: Asker, problems: list[Problem], samples: int, seed: int, params: Parameters
) -> tuple[dict[str, float], list[Sample]]:
  """Answers to held-out problems: the same seeds every time."""
  if not problems:
    return {}, []
  with asker.lock:
    groups = asker.ask(params, problems, samples, seed)
    asker.engine.rest()
  shown = [_sample(asker.tokenizer, problem, group[0]) for problem, group in zip(problems, groups)][:_SHOWN]
  return summary(problems, groups), shown


def _sample(tokenizer: Tokenizer, problem: Problem, answer: Answer) -> Sample:
  trajectory = answer.trajectory
  reason = "" if answer.right else f": {trajectory.infos[-1].get('reason', '')}" if trajectory.infos else ""
  text = tokenizer.decode([token for token in trajectory.tokens if token < tokenizer.vocab_size])
  return Sample(problem.prompt, f"{text}\n[score {answer.score:g}{reason}]")
