"""What stages share whose batches are written by the model: problems, the asker, judging by held-out problems."""

from __future__ import annotations

import functools

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.rewards.environment import ProblemEnvironment
from qwen3_jax.rl.asking import Answer, Asker, rollout_settings, summary
from qwen3_jax.rl.modes import in_every_mode
from qwen3_jax.rollout.decoding_mesh import decoding_mesh
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages.stage import Assess, Sample
from qwen3_jax.train_program import TrainProgram

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
