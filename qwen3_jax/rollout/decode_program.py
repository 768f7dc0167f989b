"""DecodeProgram: the engine's decoding step for devices that need not be there; `compile --decode` reports on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.flops import matmul_parameters
from qwen3_jax.models.transformer import abstract_parameters
from qwen3_jax.rollout.cache import PagedCache, page_bytes
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.programs import Programs
from qwen3_jax.rollout.rows import rows_of
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.sharding import batch_shards, decoding, parameter_shardings


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
  """One token for every slot, on a paged cache; parameters in `model.dtype`, layers scanned."""

  model: ModelConfig
  settings: EngineSettings
  pages: int  # of each layer, on the devices of one shard of slots
  context: int  # tokens that a slot holds on average, for the cost

  @property
  def tokens_per_step(self) -> int:
    return self.settings.slots

  @property
  def flops_per_step(self) -> float:
    """2 per matmul parameter, and 4 * N * H a layer for each key seen."""
    model = self.model
    attention = 4.0 * model.num_layers * model.num_heads * model.head_dim * self.context
    return self.tokens_per_step * (2.0 * matmul_parameters(model) + attention)

  def arguments(self, mesh: Mesh) -> dict[str, Any]:
    """ShapeDtypeStructs with their shardings."""
    programs, settings = self._programs(mesh), self.settings
    with decoding():
      shardings = parameter_shardings(self.model, mesh)
    dtype = np.dtype(self.model.dtype)
    parameters = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding),
      abstract_parameters(self.model),
      shardings,
    )
    cache = jax.eval_shape(
      lambda: PagedCache.empty(
        self.model, batch_shards(mesh), self.pages, settings.page_size, settings.cache_dtype or self.model.dtype
      )
    )
    idle = rows_of(self.model, settings, ThinkingTokens(), [None])
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((settings.slots, *x.shape[1:]), x.dtype), idle)
    place = lambda tree, sharding: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
    width = -(-settings.max_length // settings.page_size)
    table = jax.ShapeDtypeStruct((settings.slots, width), np.int32)
    return {
      "parameters": parameters,
      "cache": place(cache, programs.of_cache),
      "rows": place(rows, programs.of_rows),
      "page_table": place(table, programs.whole),
    }

  def resident(self, mesh: Mesh) -> dict[str, Any]:
    return {}

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    steps = jax.ShapeDtypeStruct((), np.int32)
    with jax.set_mesh(mesh):
      return self._programs(mesh).jitted_decode.lower(*self.arguments(mesh).values(), steps)

  def _programs(self, mesh: Mesh) -> Programs:
    return Programs(self.model, ThinkingTokens(), self.settings, mesh, stacked=True)


def page_bytes_of_device(model: ModelConfig, settings: EngineSettings, mesh: Mesh) -> int:
  """Bytes that a page of all layers takes on one device."""
  return page_bytes(model, settings.page_size, settings.cache_dtype or model.dtype) // mesh.shape["tensor"]
