"""Checks of the teachers of a `distill` stage."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from qwen3_jax.config import OF_STAGE, model_settings, teacher_model
from qwen3_jax.models.config import DTYPES
from qwen3_jax.objectives.distillation_settings import Distillation


def teacher_problems(config: ConfigDict, name: str) -> Iterator[str]:
  """One line for each reason why stage `name` cannot run."""
  stage, prefix = config.stages[name], f"stages.{name}."
  try:
    Distillation(**stage.distillation)
  except ValueError as error:
    yield f"{prefix}distillation: {error}"
  if not stage.teachers:
    yield f"{prefix}teachers: names none; see config.teacher"
  for teacher, settings in stage.teachers.items():
    key = f"{prefix}teachers.{teacher}."
    student = model_settings(config, name)
    before = config.pipeline[: config.pipeline.index(name)] if name in config.pipeline else ()
    if not settings.path:
      yield f"{key}path='': names no checkpoint"
    elif settings.path.startswith(OF_STAGE) and settings.path.removeprefix(OF_STAGE) not in before:
      yield f"{key}path={settings.path!r}: no stage before {name!r}; there are {', '.join(before) or 'none'}"
      continue
    if settings.dtype not in DTYPES:
      yield f"{key}dtype={settings.dtype!r}: must be one of {', '.join(DTYPES)}"
      continue
    try:
      model = teacher_model(config, name, teacher)
    except ValueError as error:
      yield f"{key}model: {error}"
      continue
    if model.vocab_size != student.vocab_size:
      yield f"{key}model={settings.model!r}: {model.vocab_size} ids, the student has {student.vocab_size}"
  for route in stage.routes:
    fits = isinstance(route, tuple) and len(route) == 2 and all(isinstance(part, str) for part in route)
    if not fits or route[1] not in stage.teachers:
      yield f"{prefix}routes: {route!r}: expected (mode or domain, one of {', '.join(stage.teachers)})"
