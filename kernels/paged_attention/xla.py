"""Paged attention for any XLA backend: blocks of pages in turn, softmax online.

All work items take a step together, so that a GPU has work; what a step gathers is all that is kept of the cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.paged_attention.items import Layout, tokens_of_item
from kernels.paged_attention.pages import Pages

_HIDDEN = -1e30  # finite: a row may have seen no key yet
_TOKENS = 64  # of an item, at most
_KEYS = 256  # of a step


def attend(query: jax.Array, pages: Pages, page_table: jax.Array, lengths: jax.Array, query_starts: jax.Array):
  """As `api.paged_attention`."""
  S, N, H = query.shape
  P, K, page_size, _ = pages.keys.shape
  block = tokens_of_item(S, lengths.shape[0], _TOKENS)
  layout = Layout(lengths, query_starts, S, block)
  items = layout.items
  queries = layout.to_items(query, K)
  W, _, rows, _ = queries.shape
  width = min(max(1, _KEYS // page_size), page_table.shape[1])  # pages of a step
  keys_of_step = width * page_size
  tables = page_table[items.sequences]
  row_position = items.positions[:, None] + jnp.arange(rows, dtype=jnp.int32) // (N // K)

  def fetch(x: jax.Array, first_page: jax.Array) -> jax.Array:
    """[P, K, page_size, ...] -> [W, K, keys, ...]. Entries of unused pages may be anything: what is read is hidden."""
    columns = first_page + jnp.arange(width, dtype=jnp.int32)
    found = x[jnp.clip(jnp.take(tables, columns, axis=1, mode="clip"), 0, P - 1), :, :page_size]
    return found.swapaxes(1, 2).reshape(W, K, keys_of_step, *x.shape[3:])

  def step(carry):
    n, peak, total, sums = carry
    place = n * keys_of_step + jnp.arange(keys_of_step, dtype=jnp.int32)
    written = (place < items.limits[:, None])[:, None]  # [W, 1, keys]
    visible = written[:, :, None] & (place <= row_position[:, None, :, None])  # [W, 1, rows, keys]
    keys, values, *scales = (fetch(x, n * width) for x in pages if x is not None)
    scores = jnp.einsum(
      "wkrh,wksh->wkrs", queries, keys.astype(query.dtype), precision="highest", preferred_element_type=jnp.float32
    )
    if scales:
      scores *= scales[0][:, :, None]
    scores = jnp.where(visible, scores * H**-0.5, _HIDDEN)
    new = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - new), 0.0)
    rescale = jnp.exp(peak - new)
    total = total * rescale + jnp.sum(weights, axis=-1, keepdims=True)
    if scales:
      weights *= jnp.where(written, scales[1], 0)[:, :, None]
    values = jnp.where(written[..., None], values, jnp.zeros_like(values))  # NaN times no weight is NaN
    added = jnp.einsum(
      "wkrs,wksh->wkrh",
      weights.astype(query.dtype),
      values.astype(query.dtype),
      precision="highest",
      preferred_element_type=jnp.float32,
    )
    return n + 1, new, total, sums * rescale + added

  column = jnp.zeros((W, K, rows, 1), jnp.float32)
  start = jnp.int32(0), column + _HIDDEN, column, jnp.zeros((W, K, rows, H), jnp.float32)
  longest = jnp.max(items.limits)
  _, _, total, sums = jax.lax.while_loop(lambda carry: carry[0] * keys_of_step < longest, step, start)
  output = sums / jnp.where(total > 0, total, 1)
  return layout.to_tokens(output.astype(query.dtype), S, N)
