"""Reports of the stages of an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.compilation.compiler import Program, lower
from qwen3_jax.compilation.fixes import fixes
from qwen3_jax.compilation.report import Report, compile_report
from qwen3_jax.compilation.topologies import Topology
from qwen3_jax.config import stage_mesh, stage_names, teacher_mesh
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages import kinds
from qwen3_jax.train_program import frozen_parameters


def stage_reports(config: ConfigDict, topology: Topology) -> Iterator[Report]:
  """One report for each stage, as soon as it is there, and for each of its teachers.

  A program that is the same as an earlier one names it.
  """
  seen: dict[str, Report] = {}
  for stage in stage_names(config):
    for part in _parts(config, stage, topology):
      lowered = lower(part.program, part.mesh)
      names = {"name": f"{config.name} {stage}{part.name}", "stage": stage}
      if before := seen.get(lowered.fingerprint):
        yield before | names | {"same_program_as": before["name"]}
        continue
      report: Report = names | compile_report(part.program, lowered, part.mesh, topology, part.beside)
      if not report["fits"] and not part.name:
        report["fixes"] = fixes(config, stage, topology, part.mesh.shape, report["overflow_bytes"])
      seen[lowered.fingerprint] = report
      yield report


class _Part(NamedTuple):
  name: str  # "" of a train step
  program: Program
  mesh: Mesh
  beside: dict[str, Any]  # what is on the devices meanwhile


def _parts(config: ConfigDict, stage: str, topology: Topology) -> list[_Part]:
  """The programs that take turns in a stage: its train step, and its teachers."""

  def mesh_of(shape: dict[str, int]) -> Mesh:
    try:
      return make_mesh(shape, topology.devices())
    except ValueError as error:
      raise ConfigError([str(error)]) from error

  program, mesh = kinds.make_program(config, stage), mesh_of(stage_mesh(config, stage))
  teachers = {
    name: _Part(f" teacher {name}", teacher, mesh_of(teacher_mesh(config, stage, name)), {})
    for name, teacher in kinds.teacher_programs(config, stage).items()
  }
  frozen = {
    name: frozen_parameters(part.program.model, part.mesh)
    for name, part in teachers.items()
    if not config.stages[stage].teachers[name].offload
  }
  state = program.abstract_state(mesh)
  parts = [_Part("", program, mesh, {f"teacher {name}": tree for name, tree in frozen.items()})]
  for name, part in teachers.items():
    others = {f"teacher {other}": tree for other, tree in frozen.items() if other != name}
    parts.append(part._replace(beside={"student": (state.params, state.optimizer), **others}))
  return parts
