"""Attention of new tokens on a paged cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable

import jax

from kernels.paged_attention import pallas_tpu, xla
from kernels.paged_attention.pages import Pages, check, empty_pages, write

__all__ = ["Pages", "empty_pages", "paged_attention", "write"]


def paged_attention(
  query: jax.Array, pages: Pages, page_table: jax.Array, lengths: jax.Array, query_starts: jax.Array
) -> jax.Array:
  """A token sees the keys of its sequence up to its own; scores are scaled by H**-0.5; softmax in float32.

  The keys and values of the new tokens are in the pages already (`write`). One token of each sequence is decoding, more
  are a chunk of a prompt; one call may mix both. A Pallas kernel on TPU if it takes the shapes, `xla` elsewhere.

  Args:
    query: [S, N, H]; rows query_starts[r]:query_starts[r + 1] are sequence r's new tokens, its last in order; query
      head n uses key/value head n // (N // K).
    pages: of K heads; their values are read in query's dtype.
    page_table: int32 [R, max_pages]: the pages of sequences, in order; entries after a sequence's last page are not
      read.
    lengths: int32 [R]: tokens of each sequence, the new ones included; or 0.
    query_starts: int32 [R + 1], ascending.

  Returns:
    [S, N, H] in query's dtype; 0 for rows of no sequence and of sequences of length 0.
  """
  check(pages)
  if query.ndim != 3 or query.shape[2] != pages.keys.shape[3] or query.shape[1] % pages.keys.shape[1]:
    raise ValueError(f"paged_attention: query {query.shape} and pages {pages.keys.shape} do not fit")
  R = lengths.shape[0]
  if lengths.shape != (R,) or query_starts.shape != (R + 1,) or page_table.ndim != 2 or page_table.shape[0] != R:
    raise ValueError(
      f"paged_attention: page_table {page_table.shape}, lengths {lengths.shape} and query_starts"
      f" {query_starts.shape}, expected (R, max_pages), (R,) and (R + 1,)"
    )
  implementations: dict[str, Callable] = {"default": xla.attend}
  if pallas_tpu.supported(query, pages, page_table):
    implementations["tpu"] = pallas_tpu.attend
  return jax.lax.platform_dependent(query, pages, page_table, lengths, query_starts, **implementations)
