"""Keys and values of what slots hold: dense for a CPU, paged for the rest. Both implement `models.cached.Cache`."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.paged_attention import api as paged
from kernels.paged_attention.pages import Pages
from qwen3_jax.models.cached import Place
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.sharding import BATCH_AXES, current_mesh, on_shards

_HIDDEN = -1e30
_ROWS, _HEADS = P(BATCH_AXES), P(BATCH_AXES, None, "tensor")  # of arrays [B, ...] and [B, T, heads, H]
CACHE_SPEC = P(BATCH_AXES, "tensor")  # of every array of a cache: slots or pages, then heads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseCache:
  """Room for S tokens in every slot.

  Keys lie with tokens last: XLA for CPU multiplies with the transpose of a matrix at a fraction of the speed.
  """

  keys: tuple[jax.Array, ...]  # of each layer, [R, K, H, S]
  values: tuple[jax.Array, ...]  # [R, K, S, H]

  @classmethod
  def empty(cls, config: ModelConfig, slots: int, length: int) -> DenseCache:
    R, K, H = slots, config.num_kv_heads, config.head_dim
    zeros = lambda *shape: tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
    return cls(zeros(R, K, H, length), zeros(R, K, length, H))

  @property
  def length(self) -> int:
    """S"""
    return self.keys[0].shape[3]

  def resized(self, length: int) -> DenseCache:
    """With room for so many tokens; what was there stays as far as it fits."""
    more = max(length - self.length, 0)
    keys = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))[..., :length] for x in self.keys)
    values = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))[..., :length, :] for x in self.values)
    return DenseCache(keys, values)

  def copied(self, sources: jax.Array, targets: jax.Array) -> DenseCache:
    """With slots `targets` int32 [shards, A], within a shard, holding what `sources` hold."""

    def copy(cache: DenseCache, sources: jax.Array, targets: jax.Array) -> DenseCache:
      def one(a, x):  # a slot at a time: XLA for CPU scatters number by number
        row = jax.lax.dynamic_slice_in_dim(x, sources[0, a], 1)
        return jax.lax.dynamic_update_slice_in_dim(x, row, targets[0, a], 0)

      step = lambda a, cache: jax.tree.map(functools.partial(one, a), cache)
      return jax.lax.fori_loop(0, sources.shape[1], step, cache)

    mesh = current_mesh()
    if mesh is not None:
      specs = (CACHE_SPEC, _ROWS, _ROWS)
      copy = on_shards(copy, mesh, in_specs=specs, out_specs=CACHE_SPEC)
    return copy(self, sources, targets)

  def cleared(self, slot: jax.Array) -> DenseCache:
    """With zeros in a slot: a number that is not finite would spoil whoever comes next, though no weight is on it."""
    return jax.tree.map(lambda x: x.at[slot].set(0), self)

  def attend(self, layer: int, place: Place, query: jax.Array, key: jax.Array, value: jax.Array):
    arguments = (self.keys[layer], self.values[layer], place.slots, place.starts, place.counts, query, key, value)
    attend = _dense_attend
    mesh = current_mesh()
    if mesh is not None:
      slots = None if place.slots is None else _ROWS
      specs = (CACHE_SPEC, CACHE_SPEC, slots, _ROWS, _ROWS, _HEADS, _HEADS, _HEADS)
      out = (_HEADS, CACHE_SPEC, CACHE_SPEC)
      attend = on_shards(functools.partial(_dense_attend, local=True), mesh, in_specs=specs, out_specs=out)
    attended, keys, values = attend(*arguments)
    put = lambda old, new: (*old[:layer], new, *old[layer + 1 :])
    return attended, DenseCache(put(self.keys, keys), put(self.values, values))


def _dense_attend(keys, values, slots, starts, counts, query, key, value, local: bool = False):
  """keys [R, K, H, S], values [R, K, S, H]; query [B, T, N, H], key, value [B, T, K, H] -> (attended, keys, values)"""
  B, T, N, H = query.shape
  R, K, S, _ = values.shape
  place = Place(slots, starts, counts)
  position = place.positions(T)
  column = jnp.where(place.is_new(T), position, S)  # after the last: dropped
  if slots is not None and local:
    slots = slots - jax.lax.axis_index(BATCH_AXES) * R
  row = (jnp.arange(B) if slots is None else slots)[:, None]
  keys = keys.at[row, :, :, column].set(key, mode="drop")
  values = values.at[row, :, column].set(value, mode="drop")
  ours, theirs = (keys, values) if slots is None else (keys[slots], values[slots])
  queries = query.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, N // K * T, H)
  scores = jnp.einsum("bkrh,bkhs->bkrs", queries, ours, preferred_element_type=jnp.float32) * H**-0.5
  visible = jnp.arange(S) <= position[:, :, None]  # [B, T, S]
  scores = jnp.where(visible[:, None, None], scores.reshape(B, K, N // K, T, S), _HIDDEN)
  weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype).reshape(B, K, -1, S)
  attended = jnp.einsum("bkrs,bksh->bkrh", weights, theirs)
  return attended.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H), keys, values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
  """Pages that slots own through a page table, those of all layers in one pool.

  In each shard of slots the pages of layer l are l * pages_per_layer and the following ones, so that a layer scanned
  over needs no slice of the pool. Page tables hold numbers within a layer.
  """

  pages: Pages  # [shards * L * pages_per_layer, K, page_size, H]
  num_layers: int = dataclasses.field(metadata={"static": True})

  @classmethod
  def empty(cls, config: ModelConfig, shards: int, pages_per_layer: int, page_size: int, dtype: str) -> PagedCache:
    count = shards * config.num_layers * pages_per_layer
    pages = paged.empty_pages(count, config.num_kv_heads, page_size, config.head_dim, jnp.dtype(dtype))
    return cls(pages, config.num_layers)

  def _each_shard(self, function, *arguments, specs, out):
    mesh = current_mesh()
    if mesh is None:
      return function(*arguments)
    return on_shards(function, mesh, in_specs=specs, out_specs=out)(*arguments)

  def copied(self, sources: jax.Array, targets: jax.Array) -> PagedCache:
    """With pages `targets` int32 [shards, A], in all layers, holding what `sources` hold; negative ones are ignored."""

    def copy(pages: Pages, sources: jax.Array, targets: jax.Array) -> Pages:
      def one(x: jax.Array) -> jax.Array:
        layers = x.reshape(self.num_layers, -1, *x.shape[1:])
        to = jnp.where(targets[0] < 0, layers.shape[1], targets[0])
        return layers.at[:, to].set(layers[:, sources[0]], mode="drop").reshape(x.shape)

      return jax.tree.map(one, pages)

    pages = self._each_shard(copy, self.pages, sources, targets, specs=(CACHE_SPEC, _ROWS, _ROWS), out=CACHE_SPEC)
    return PagedCache(pages, self.num_layers)

  def attend(self, layer: int | jax.Array, place: Place, query: jax.Array, key: jax.Array, value: jax.Array):
    assert place.page_table is not None

    def attend(pages: Pages, table, starts, counts, query, key, value):
      B, T = query.shape[:2]
      place = Place(None, starts, counts)
      first_page = layer * (pages.keys.shape[0] // self.num_layers)
      position = place.positions(T)
      page = jnp.take_along_axis(table, jnp.maximum(position, 0) // pages.page_size, axis=1, mode="clip") + first_page
      slot = page * pages.page_size + position % pages.page_size
      slot = jnp.where(place.is_new(T), slot, -1)
      flat = lambda x: x.reshape(B * T, *x.shape[2:])
      pages = paged.write(pages, flat(key), flat(value), flat(slot))
      query_starts = jnp.arange(B + 1, dtype=jnp.int32) * T
      attended = paged.paged_attention(flat(query), pages, table + first_page, starts + counts, query_starts)
      return attended.reshape(query.shape), pages

    arguments = (self.pages, place.page_table, place.starts, place.counts, query, key, value)
    specs = (CACHE_SPEC, _ROWS, _ROWS, _ROWS, _HEADS, _HEADS, _HEADS)
    attended, pages = self._each_shard(attend, *arguments, specs=specs, out=(_HEADS, CACHE_SPEC))
    return attended, PagedCache(pages, self.num_layers)


def page_bytes(config: ModelConfig, page_size: int, dtype: str) -> int:
  """Bytes of a page in all layers and heads."""
  page = jax.eval_shape(lambda: paged.empty_pages(1, config.num_kv_heads, page_size, config.head_dim, jnp.dtype(dtype)))
  return config.num_layers * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(page))


def cache_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, CACHE_SPEC)
