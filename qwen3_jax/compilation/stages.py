"""Reports of the stages of an experiment."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from qwen3_jax.compilation.compiler import lower
from qwen3_jax.compilation.fixes import fixes
from qwen3_jax.compilation.report import Report, compile_report
from qwen3_jax.compilation.topologies import Topology
from qwen3_jax.config import stage_mesh, stage_names
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages import kinds


def stage_reports(config: ConfigDict, topology: Topology) -> Iterator[Report]:
  """One report for each stage, as soon as it is there; a stage that is the same program as an earlier one names it."""
  seen: dict[str, Report] = {}
  for stage in stage_names(config):
    try:
      mesh = make_mesh(stage_mesh(config, stage), topology.devices())
    except ValueError as error:
      raise ConfigError([str(error)]) from error
    program = kinds.make_program(config, stage)
    lowered = lower(program, mesh)
    name = f"{config.name} {stage}"
    if before := seen.get(lowered.fingerprint):
      yield before | {"name": name, "stage": stage, "same_program_as": before["name"]}
      continue
    report: Report = {"name": name, "stage": stage} | compile_report(program, lowered, mesh, topology)
    if not report["fits"]:
      report["fixes"] = fixes(config, stage, topology, mesh.shape, report["overflow_bytes"])
    seen[lowered.fingerprint] = report
    yield report
