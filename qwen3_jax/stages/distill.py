"""A stage of on-policy distillation: the student writes, teachers' predictions of it are learnt (report, 4.5)."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.config import OF_STAGE, model_settings, teacher_mesh, teacher_model
from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.distillation.student_collector import NoTerms, StudentCollector
from qwen3_jax.distillation.teacher import Teacher, check_teacher, with_hidden
from qwen3_jax.distillation.teacher_program import TeacherProgram
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.objectives.distillation import distillation
from qwen3_jax.objectives.distillation_settings import Distillation
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages.program import stage_program, stage_seed
from qwen3_jax.stages.rollouts import assessor, make_asker, rollout_stage, stage_problems
from qwen3_jax.stages.stage import Stage
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.workdir import Workdir


def make_program(config: ConfigDict, name: str) -> TrainProgram:
  """The train step of stage `name` of a checked config; opens nothing."""
  teachers = config.stages[name].teachers
  return _program(config, name, tuple(teacher_model(config, name, teacher) for teacher in teachers))


def teacher_programs(config: ConfigDict, name: str) -> dict[str, TeacherProgram]:
  """What else runs for a step of stage `name`, by teacher; opens nothing."""
  program = make_program(config, name)
  return {
    teacher: TeacherProgram(model, program.batch_shape, program.micro_batches)
    for teacher, model in zip(config.stages[name].teachers, program.teachers)
  }


def _program(config: ConfigDict, name: str, teachers: tuple[ModelConfig, ...], vocabulary: int = 0) -> TrainProgram:
  settings = config.stages[name]
  objective = distillation(Distillation(**settings.distillation), vocabulary or model_settings(config, name).vocab_size)
  return stage_program(config, name, objective, teachers=teachers)


def check_files(config: ConfigDict, name: str, tokenizer: Tokenizer) -> None:
  """Raises DataError if a teacher's folder is missing, damaged, or has another tokenizer."""
  for teacher, settings in config.stages[name].teachers.items():
    if not settings.path.startswith(OF_STAGE):
      check_teacher(f"stages.{name}.teachers.{teacher}.path", Path(settings.path), tokenizer)


def make_stage(config: ConfigDict, name: str, tokenizer: Tokenizer, mesh: Mesh, workdir: Workdir) -> Stage:
  """Stage `name` of a checked config on `mesh`."""
  settings = config.stages[name]
  seed = stage_seed(config, name)
  teachers = [
    Teacher(
      _folder(config, name, teacher, tokenizer, workdir),
      number,
      dtype=settings.teachers[teacher].dtype,
      mesh=make_mesh(teacher_mesh(config, name, teacher)),
      offload=settings.teachers[teacher].offload,
      student_mesh=mesh,
      vocab_size=model_settings(config, name).vocab_size,
      batch_shape=(settings.batch_size, settings.sequence_length),
      micro_batches=settings.micro_batches,
    )
    for number, teacher in enumerate(settings.teachers)
  ]
  program = _program(config, name, tuple(teacher.config for teacher in teachers), tokenizer.vocab_size)
  trained, held_out = stage_problems(name, settings)
  asker = make_asker(settings, program, tokenizer, mesh)
  collector = StudentCollector(
    asker=asker,
    order=ProblemOrder(trained, seed, relearn=False),
    problems=settings.batch_size * settings.minibatches // settings.samples,
    samples=settings.samples,
    length=settings.sequence_length,
    modes=dict(settings.rollout.modes),
    teachers=list(settings.teachers),
    routes=settings.routes,
    seed=seed,
  )
  assess = assessor(asker, held_out, settings, seed)
  stage = rollout_stage(config, name, program, collector, NoTerms(), assess, mesh, workdir)
  heads = tuple(teacher.head for teacher in teachers)
  return dataclasses.replace(stage, complete=functools.partial(with_hidden, teachers), constants=(heads,))


def _folder(config: ConfigDict, name: str, teacher: str, tokenizer: Tokenizer, workdir: Workdir) -> Path:
  """The teacher's checkpoint; DataError if its model is not the one that the config says."""
  settings = config.stages[name].teachers[teacher]
  of_stage = settings.path.startswith(OF_STAGE)
  path = workdir.stage(settings.path.removeprefix(OF_STAGE)) if of_stage else Path(settings.path)
  found = check_teacher(f"stages.{name}.teachers.{teacher}.path", path, tokenizer)
  if settings.model and not of_stage:
    expected = teacher_model(config, name, teacher)
    shape = lambda model: (model.num_layers, model.hidden_size, model.num_heads, model.num_experts)
    if shape(found) != shape(expected):
      raise DataError(
        f"stages.{name}.teachers.{teacher}: {path} holds a model of (layers, width, heads, experts) {shape(found)},"
        f" model={settings.model!r} has {shape(expected)}"
      )
  return path
