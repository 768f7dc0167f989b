"""What to change when a stage does not fit: single changes, each with an estimate of what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from qwen3_jax.compilation.estimate import estimate
from qwen3_jax.compilation.selection import validate_selection
from qwen3_jax.compilation.topologies import Topology, larger_topology
from qwen3_jax.config import stage_mesh, stage_model
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.models.config import REMAT_POLICIES
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages import kinds

Change = dict[str, Any]


def fixes(config: ConfigDict, stage: str, topology: Topology, mesh_shape: Mapping[str, int], excess: int) -> list[dict]:
  """Changes that save memory: those that would make up for `excess` bytes first, the smallest of them first.

  Each has `change` (flags to add), `bytes` (estimated saving per device) and `would_fit`.
  """
  now = _bytes(config, stage, topology)
  found = []
  for change in _changes(config, stage, mesh_shape):
    change = of_stage(change, config, stage)
    try:
      saving = now - _bytes(changed(config, change, topology), stage, topology)
    except ConfigError:
      continue
    if saving > 0:
      flags = " ".join(f"--config.{key}={value}" for key, value in change.items())
      found.append({"change": flags, "bytes": saving, "would_fit": saving >= excess})
  if larger := larger_topology(topology):
    try:
      saving = now - _bytes(changed(config, of_stage({"mesh.fsdp": -1}, config, stage), larger), stage, larger)
    except ConfigError:
      saving = 0
    if saving > 0:
      found.append({"change": f"--topology={larger.name}", "bytes": saving, "would_fit": saving >= excess})
  return sorted(found, key=lambda fix: (not fix["would_fit"], fix["bytes"] if fix["would_fit"] else -fix["bytes"]))


def changed(config: ConfigDict, change: Change, topology: Topology) -> ConfigDict:
  """A copy with dotted keys set. Raises ConfigError when it is not valid on the topology."""
  copy = ConfigDict(config.to_dict())
  copy.update_from_flattened_dict(change)
  validate_selection(copy, topology.device_count)
  return copy


def of_stage(change: Change, config: ConfigDict, stage: str) -> Change:
  """`change` with the stage's own keys of the mesh and of remat where it has some, as those would win."""
  own = config.stages[stage]
  keys = {f"mesh.{axis}": f"stages.{stage}.mesh.{axis}" for axis, size in own.mesh.items() if size}
  if own.remat:
    keys["model.remat"] = f"stages.{stage}.remat"
  return {keys.get(key, key): value for key, value in change.items()}


def _bytes(config: ConfigDict, stage: str, topology: Topology) -> int:
  mesh = make_mesh(stage_mesh(config, stage), topology.devices())
  program = kinds.make_program(config, stage)
  return estimate(program, mesh, topology, program.arguments(mesh)).bytes


def _changes(config: ConfigDict, stage: str, mesh_shape: Mapping[str, int]) -> Iterator[Change]:
  settings = config.stages[stage]
  remat = stage_model(config, stage).remat
  remats = [{"model.remat": policy} for policy in REMAT_POLICIES if policy != remat]
  halved = {f"stages.{stage}.micro_batches": settings.micro_batches * 2}
  yield from remats
  yield halved
  yield from (change | halved for change in remats)
  if not config.model.offload_layer_inputs:
    if remat != "none":
      yield {"model.offload_layer_inputs": True}
    yield {"model.remat": "full", "model.offload_layer_inputs": True}
  for key, value in (("moment_dtype", "bfloat16"), ("gradient_dtype", "bfloat16"), ("offload", True)):
    if settings.optimizer[key] != value:
      yield {f"stages.{stage}.optimizer.{key}": value}
  if mesh_shape["data"] > 1:
    yield {"mesh.data": 1, "mesh.fsdp": mesh_shape["fsdp"] * mesh_shape["data"]}
