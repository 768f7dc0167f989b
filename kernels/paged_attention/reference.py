"""The oracle: every token's keys gathered, attention written out, in query's precision but at least float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.paged_attention.pages import Pages


def attend(query: jax.Array, pages: Pages, page_table: jax.Array, lengths: jax.Array, query_starts: jax.Array):
  """As `api.paged_attention`."""
  S, N, H = query.shape
  R, most = page_table.shape
  P, K, page_size, _ = pages.keys.shape
  precise = jnp.promote_types(query.dtype, jnp.float32)
  token = jnp.arange(S)
  sequence = jnp.searchsorted(query_starts, token, side="right") - 1
  inside = (sequence >= 0) & (sequence < R)
  sequence = jnp.clip(sequence, 0, R - 1)
  position = lengths[sequence] - query_starts[sequence + 1] + token
  visible = jnp.arange(most * page_size) <= jnp.where(inside, position, -1)[:, None]  # [S, L]
  table = jnp.clip(page_table, 0, P - 1)

  def of_tokens(x, scales):
    """Dequantised [S, K, L, H]; 0 where nothing is seen."""
    x = x.astype(precise) if scales is None else x.astype(precise) * scales[:, :, :page_size, None].astype(precise)
    by_sequence = x[table].swapaxes(1, 2).reshape(R, K, most * page_size, H)
    return jnp.where(visible[:, None, :, None], by_sequence[sequence], 0)

  keys, values = of_tokens(pages.keys, pages.key_scales), of_tokens(pages.values, pages.value_scales)
  grouped = query.astype(precise).reshape(S, K, N // K, H)
  scores = jnp.einsum("skgh,sklh->skgl", grouped, keys, precision="highest") * H**-0.5
  weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
  return jnp.einsum("skgl,sklh->skgh", weights, values, precision="highest").reshape(S, N, H).astype(query.dtype)
