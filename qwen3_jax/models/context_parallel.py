"""Attention on a mesh, and the layout of a sequence that is split over `context`.

With C context shards a sequence is cut into 2C chunks, and shard i holds chunks i and 2C-1-i: under a causal mask every
shard then has the same work. Keys and values are gathered over `context` in every layer: with few key/value heads that
is a small part of what a layer moves (Llama 3 report, section 3.3.2).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from kernels.flash_attention import api
from qwen3_jax.sharding import BATCH_AXES, TOKENS, batch_mesh, on_shards


def attend(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """`flash_attention.api.attention` on each device's own rows and heads; a sequence split over `context` is in the
  balanced layout. Shapes and result as there."""
  mesh = batch_mesh(*query.shape[:2])
  if mesh is None:
    return api.attention(query, key, value, segment_ids)
  tensor = mesh.shape["tensor"]
  if key.shape[2] % tensor:  # every tensor shard needs a copy of the head that its queries read
    copies = tensor // key.shape[2]
    key, value = jnp.repeat(key, copies, axis=2), jnp.repeat(value, copies, axis=2)
  heads = P(BATCH_AXES, "context", "tensor", None)
  local = api.attention if mesh.shape["context"] == 1 else functools.partial(_attend_gathered, mesh.shape["context"])
  mapped = on_shards(local, mesh, in_specs=(heads, heads, heads, TOKENS), out_specs=heads)
  return mapped(query, key, value, segment_ids)


def _attend_gathered(C: int, query, key, value, segment_ids):
  """One shard's queries, of chunks i and 2C-1-i, on the keys of the whole sequence."""
  gather = lambda x: _in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), C)
  chunk = query.shape[1] // 2
  shard = jax.lax.axis_index("context")
  place = jnp.arange(chunk, dtype=jnp.int32)
  order = jnp.concatenate([shard * chunk + place, (2 * C - 1 - shard) * chunk + place])
  return api.attention_with_log_sums(query, gather(key), gather(value), segment_ids, gather(segment_ids), order)[0]


def _in_order(x: jax.Array, C: int) -> jax.Array:
  """[B, S, ...] in the balanced layout of C shards -> in the order of the sequence."""
  chunks = jnp.split(x, 2 * C, axis=1)
  return jnp.concatenate(chunks[0::2] + chunks[1::2][::-1], axis=1)


def to_balanced(mesh: AbstractMesh, x: jax.Array) -> jax.Array:
  """[B, T, ...], contiguous on the context shards -> the balanced layout, by two exchanges between neighbours."""
  C = mesh.shape["context"]

  def local(x):
    first, second = jnp.split(x, 2, axis=1)
    evens = jax.lax.ppermute(first, "context", [(shard, _home(2 * shard, C)) for shard in range(C)])
    odds = jax.lax.ppermute(second, "context", [(shard, _home(2 * shard + 1, C)) for shard in range(C)])
    return _swap_on_odd_shards(evens, odds)

  return _mapped(mesh, local, x)


def from_balanced(mesh: AbstractMesh, x: jax.Array) -> jax.Array:
  """The inverse of `to_balanced`."""
  C = mesh.shape["context"]

  def local(x):
    evens, odds = jnp.split(_swap_on_odd_shards(*jnp.split(x, 2, axis=1)), 2, axis=1)
    first = jax.lax.ppermute(evens, "context", [(_home(2 * shard, C), shard) for shard in range(C)])
    second = jax.lax.ppermute(odds, "context", [(_home(2 * shard + 1, C), shard) for shard in range(C)])
    return jnp.concatenate([first, second], axis=1)

  return _mapped(mesh, local, x)


def _home(chunk: int, C: int) -> int:
  """The shard of a chunk in the balanced layout."""
  return chunk if chunk < C else 2 * C - 1 - chunk


def _swap_on_odd_shards(a: jax.Array, b: jax.Array) -> jax.Array:
  """Of an early and a late chunk, the even-numbered one comes first on even shards only."""
  odd = jax.lax.axis_index("context") % 2 == 1
  return jnp.concatenate([jnp.where(odd, b, a), jnp.where(odd, a, b)], axis=1)


def _mapped(mesh: AbstractMesh, local, x: jax.Array) -> jax.Array:
  return on_shards(local, mesh, in_specs=TOKENS, out_specs=TOKENS)(x)
