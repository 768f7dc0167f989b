"""What stages share whose batches are written by the model: problems, the asker, judging, the stage."""

from __future__ import annotations

import functools

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.optimizer import make_schedule
from qwen3_jax.placement import local_rows
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.rewards.environment import ProblemEnvironment
from qwen3_jax.rl.asking import Answer, Asker, rollout_settings, summary
from qwen3_jax.rl.modes import in_every_mode
from qwen3_jax.rl.rollout_batches import Collects, RolloutBatches, Terms
from qwen3_jax.rollout.decoding_mesh import decoding_mesh
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.sharding import batch_sharding, make_mesh
from qwen3_jax.stages.program import stage_seed
from qwen3_jax.stages.stage import Assess, Sample, Stage
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.workdir import Workdir

_SHOWN = 4  # answers of an evaluation


def stage_problems(name: str, settings: ConfigDict) -> tuple[list[Problem], list[Problem]]:
  """What stage `name` trains on, and what is held out. Raises DataError that names the key."""
  held_out = _open(name, "validation_problems", settings.validation_problems)[: settings.evaluate_problems]
  known = {problem.prompt for problem in held_out}
  return [p for p in _open(name, "problems", settings.get("problems", "")) if p.prompt not in known], held_out


def _open(stage: str, key: str, spec: str) -> list[Problem]:
  if not spec:
    return []
  try:
    return open_problems(spec)
  except (DataError, ImportError, ValueError) as error:
    raise DataError(f"stages.{stage}.{key}: {error}") from error


def make_asker(settings: ConfigDict, program: TrainProgram, tokenizer: Tokenizer, mesh: Mesh) -> Asker:
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
    environment=functools.partial(ProblemEnvironment, format_reward=settings.get("format_reward", 0.0)),
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


def rollout_stage(
  config: ConfigDict,
  name: str,
  program: TrainProgram,
  collector: Collects,
  terms: Terms,
  assess: Assess,
  mesh: Mesh,
  workdir: Workdir,
  epochs: int = 1,
) -> Stage:
  """Stage `name` on what `collector` collects, each batch of it trained on `epochs` times."""
  settings = config.stages[name]
  batches = RolloutBatches(
    collector,
    terms,
    steps=settings.steps,
    batch_size=settings.batch_size,
    micro_batches=settings.micro_batches,
    epochs=epochs,
    staleness=settings.rollout.staleness,
    rows=local_rows(batch_sharding(mesh), program.batch_shape),
    folder=workdir.stage(name) / "rollouts",
    keep=config.checkpoint.keep,
    seed=stage_seed(config, name),
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
    assess=assess,
    facts={},
    carries_optimizer=False,
  )


def assessor(asker: Asker, held_out: list[Problem], settings: ConfigDict, seed: int) -> Assess:
  """Judges parameters by answers to held-out problems, in every mode of the stage."""
  asked = in_every_mode(held_out, dict(settings.rollout.modes))
  return functools.partial(_assess, asker, asked, settings.evaluate_samples, seed)


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
