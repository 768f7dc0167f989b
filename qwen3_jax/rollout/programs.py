"""The engine's programs, jitted for a device or a mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from qwen3_jax.compiler_options import compiler_options
from qwen3_jax.models.cached import decoding_layout
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.rollout import decode as programs
from qwen3_jax.rollout.cache import DenseCache, PagedCache, cache_sharding
from qwen3_jax.rollout.decode import Rows
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.rows import rows_of, unpacked
from qwen3_jax.rollout.sampling import Adjustments
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.sharding import BATCH_AXES, decoding, parameter_shardings


class Programs:
  """Caches and rows are donated to those that change them."""

  def __init__(
    self, config: ModelConfig, ids: ThinkingTokens, settings: EngineSettings, mesh: Mesh | None, stacked: bool
  ):
    on_cpu = (jax.local_devices() if mesh is None else mesh.devices.flat)[0].platform == "cpu"
    self._config, self._settings, self._mesh, self._stacked = config, settings, mesh, stacked
    # Always given: an array that is bound to no device is another type to the cache of compiled programs.
    self.of_cache: Sharding
    self.of_rows: Sharding
    self.whole: Sharding
    self._of_params: Any
    options: dict[str, Any] = {}
    if mesh is None:
      single = SingleDeviceSharding(jax.local_devices()[0])
      self.of_cache = self.of_rows = self.whole = self._of_params = single
    else:
      self.of_cache = cache_sharding(mesh)
      self.of_rows = NamedSharding(mesh, P(BATCH_AXES))
      self.whole = NamedSharding(mesh, P())
      with decoding():
        self._of_params = parameter_shardings(config, mesh)
      options = compiler_options(mesh)
    if on_cpu:  # a step's products are small: several at a time
      options = {"xla_cpu_enable_concurrency_optimized_scheduler": True}
    jit = functools.partial(jax.jit, compiler_options=options or None)
    on_mesh = lambda function, **settings: functools.partial(self._on_mesh, jit(function, **settings))
    cache, rows = self.of_cache, self.of_rows
    self.jitted_decode = jit(
      functools.partial(programs.decode, config, ids, settings.most_steps, settings.record_experts),
      donate_argnums=(1, 2),
      out_shardings=(cache, rows, self.whole),
    )
    self.decode = functools.partial(self._on_mesh, self.jitted_decode)
    self.prefill = on_mesh(functools.partial(programs.prefill, config), donate_argnums=3, out_shardings=cache)
    self.insert = on_mesh(_inserted, donate_argnums=0, out_shardings=rows)
    self.empty_rows = on_mesh(functools.partial(_idle, config, ids, settings), static_argnums=0, out_shardings=rows)
    self.row = on_mesh(lambda rows, slot: jax.tree.map(lambda x: x[slot], rows), out_shardings=self.whole)
    self.stop = on_mesh(_stopped, donate_argnums=0, out_shardings=rows)
    self.copy = on_mesh(lambda cache, *slots: cache.copied(*slots), donate_argnums=0, out_shardings=cache)
    self.clear = on_mesh(lambda cache, slot: cache.cleared(slot), donate_argnums=0, out_shardings=cache)
    self.resize = on_mesh(lambda cache, length: cache.resized(length), static_argnums=1, out_shardings=cache)
    empty = functools.partial(DenseCache.empty, config)
    self._empty_dense = jit(empty, static_argnums=(0, 1), out_shardings=cache)
    self._cast = jit(functools.partial(decoding_layout, config, stacked=True))
    self._unstack = jit(functools.partial(decoding_layout, config, stacked=False))
    self._lay_out = jit(self._laid_out)

  def layout(self, params: Parameters) -> Parameters:
    """Parameters as the programs take them, on the devices of the mesh."""
    if self._on_these_devices(params):
      return self._lay_out(params)
    params = jax.device_put(self._cast(params), self._of_params)
    return params if self._stacked else self._unstack(params)

  def _laid_out(self, params: Parameters) -> Parameters:
    params = decoding_layout(self._config, params, stacked=True)
    params = jax.lax.with_sharding_constraint(params, self._of_params)
    return params if self._stacked else decoding_layout(self._config, params, stacked=False)

  def _on_these_devices(self, params: Parameters) -> bool:
    """Whether they are arrays on a mesh of the devices of this one, in its order."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if self._mesh is None or not isinstance(sharding, NamedSharding):
      return False
    return list(sharding.mesh.devices.flat) == list(self._mesh.devices.flat)

  def _on_mesh(self, program, *arguments):
    if self._mesh is None:
      return program(*arguments)
    with jax.set_mesh(self._mesh):
      return program(*arguments)

  def empty_dense(self, slots: int, length: int) -> DenseCache:
    return self._empty_dense(slots, length)

  def empty_paged(self, shards: int, pages: int) -> PagedCache:
    dtype = self._settings.cache_dtype or self._config.dtype
    empty = lambda: PagedCache.empty(self._config, shards, pages, self._settings.page_size, dtype)
    return jax.jit(empty, out_shardings=self.of_cache)()


@functools.lru_cache(maxsize=16)
def engine_programs(*arguments) -> Programs:
  """Engines that are alike share what is compiled."""
  return Programs(*arguments)


def _idle(config: ModelConfig, ids: ThinkingTokens, settings: EngineSettings, slots: int) -> Rows:
  return jax.tree.map(jnp.asarray, rows_of(config, settings, ids, [None] * slots))


def _inserted(rows: Rows, columns: jax.Array, adjustments: Adjustments | None, slots: jax.Array) -> Rows:
  """Rows with others, see `rows.packed`, at `slots` int32 [A]; slots outside of the rows are ignored."""
  new = unpacked(columns, adjustments, rows)
  return jax.tree.map(lambda old, new: old.at[slots].set(new, mode="drop"), rows, new)


def _stopped(rows: Rows, slots: jax.Array) -> Rows:
  return dataclasses.replace(rows, running=rows.running.at[slots].set(False, mode="drop"))
