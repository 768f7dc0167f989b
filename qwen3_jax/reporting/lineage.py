"""Which stage of a run starts from which, and learns from which: from a work directory's config, whatever its state."""

from __future__ import annotations

from typing import Any

from qwen3_jax.config import OF_STAGE, WRITTEN
from qwen3_jax.reporting.run_record import RunRecord


def starts(run: RunRecord) -> dict[str, str | None]:
  """Stage -> the one whose parameters it starts from, as `config.stages_before` has it."""
  found: dict[str, str | None] = {}
  for stage in run.stages:
    same = [name for name in found if _text(run, name, "model") == _text(run, stage.name, "model")]
    after = _text(run, stage.name, "after")
    found[stage.name] = after if after in found else same[-1] if same else None
  return found


def teachers(run: RunRecord) -> dict[str, list[str]]:
  """Stage -> earlier stages whose predictions or writing it learns from, but for the one that it starts from."""
  start_of = starts(run)
  earlier: list[str] = []
  found = {}
  for stage in run.stages:
    names = [_teacher_stage(teacher) for teacher in _values(stage.settings.get("teachers"))]
    mixture = stage.settings.get("mixture")
    names += [_writer(run, corpus) for corpus in mixture] if isinstance(mixture, dict) else []
    own = [name for name in dict.fromkeys(names) if name in earlier and name != start_of[stage.name]]
    found[stage.name] = own
    earlier.append(stage.name)
  return found


def models(run: RunRecord) -> dict[str, str]:
  """Stage -> the name of its model, "" of the run's only or first one."""
  return {stage.name: _text(run, stage.name, "model") for stage in run.stages}


def _text(run: RunRecord, stage: str, key: str) -> str:
  settings = next(record.settings for record in run.stages if record.name == stage)
  value = settings.get(key)
  return value if isinstance(value, str) else ""


def _values(value: Any) -> list[Any]:
  return list(value.values()) if isinstance(value, dict) else []


def _teacher_stage(teacher: Any) -> str:
  path = teacher.get("path") if isinstance(teacher, dict) else None
  return path.removeprefix(OF_STAGE) if isinstance(path, str) and path.startswith(OF_STAGE) else ""


def _writer(run: RunRecord, corpus: Any) -> str:
  """The stage whose model wrote a corpus."""
  data = run.config.get("data")
  source = _get(_get(_get(data, "corpora"), corpus), "source")
  if not isinstance(source, str) or not source.startswith(WRITTEN):
    return ""
  stage = _get(_get(_get(data, "written"), source.removeprefix(WRITTEN)), "stage")
  return stage if isinstance(stage, str) else ""


def _get(value: Any, key: Any) -> Any:
  return value.get(key) if isinstance(value, dict) and isinstance(key, str) else None
