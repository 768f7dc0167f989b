"""One layer's keys and values, in pages that sequences own through a page table."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LANES = 128  # of a TPU


class Pages(NamedTuple):
  """A page holds `page_size` tokens of one sequence, head by head.

  A page is contiguous, so that one transfer fetches it for all heads, and a head's part of it is a matrix of whole
  tiles. Scales lie along lanes, as the scores of their keys do, and fill them: in an array whose last axis is less than
  a TPU's lanes, XLA would put another axis last, and copy all of it for each kernel. Those after a page's are not used.
  """

  keys: jax.Array  # [P, K, page_size, H]; a float dtype, or int8 with scales
  values: jax.Array  # [P, K, page_size, H]
  key_scales: jax.Array | None = None  # float32 [P, K, page_size, up to whole lanes]
  value_scales: jax.Array | None = None

  @property
  def page_size(self) -> int:
    return self.keys.shape[2]


def empty_pages(P: int, K: int, page_size: int, H: int, dtype) -> Pages:
  """Of zeros; with scales for int8."""
  shape = P, K, page_size, H
  scales = [jnp.zeros(_scales_shape(shape), jnp.float32) for _ in range(2 if dtype == jnp.int8 else 0)]
  return Pages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *scales)


def _scales_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
  P, K, page_size, _ = shape
  return P, K, -(-page_size // _LANES) * _LANES


def check(pages: Pages) -> None:
  keys, values, *scales = pages
  if keys.ndim != 4 or keys.shape != values.shape or keys.dtype != values.dtype:
    raise ValueError(f"Pages: keys {keys.shape} {keys.dtype} and values {values.shape} {values.dtype} do not fit")
  quantised = keys.dtype == jnp.int8
  if not quantised and not jnp.issubdtype(keys.dtype, jnp.floating):
    raise ValueError(f"Pages: keys and values of {keys.dtype}, expected a float dtype or int8")
  for scale in scales:
    if quantised != (scale is not None):
      raise ValueError(f"Pages: int8 pages have scales for keys and for values, others have none; got {keys.dtype}")
    expected = _scales_shape(keys.shape)
    if scale is not None and (scale.shape != expected or scale.dtype != jnp.float32):
      raise ValueError(f"Pages: scales {scale.shape} {scale.dtype}, expected {expected} float32")


def quantised(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[..., H] -> int8 [..., H] and its scales, float32 [...]: at most half a scale is lost."""
  x = x.astype(jnp.float32)
  scales = jnp.max(jnp.abs(x), axis=-1) / 127
  steps = x / jnp.where(scales > 0, scales, 1)[..., None]
  return jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8), scales


def write(pages: Pages, keys: jax.Array, values: jax.Array, slots: jax.Array) -> Pages:
  """Pages with the keys and values of new tokens, quantised where the pages are int8; in place if they are donated.

  Args:
    pages: of any dtype.
    keys, values: [S, K, H].
    slots: int32 [S], page * page_size + offset, no two alike; a token with a negative one is not written.
  """
  check(pages)
  P, K, page_size, H = pages.keys.shape
  if keys.shape != values.shape or keys.shape[1:] != (K, H) or slots.shape != keys.shape[:1]:
    raise ValueError(
      f"write: keys {keys.shape}, values {values.shape} and slots {slots.shape} do not fit pages {pages.keys.shape}"
    )
  # Each head of a token is written for itself: of all of them in one slice, XLA for TPU makes two copies of the pages,
  # in and out of a layout in which the slice is contiguous.
  row = jnp.where(slots < 0, P, slots // page_size)[:, None] * K + jnp.arange(K)  # after the last row: dropped
  offset = (slots % page_size)[:, None]

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    rows = old.reshape(P * K, *old.shape[2:])
    return rows.at[row, offset].set(new.astype(old.dtype), mode="drop").reshape(old.shape)

  if pages.key_scales is None or pages.value_scales is None:
    return Pages(put(pages.keys, keys), put(pages.values, values))
  (keys, key_scales), (values, value_scales) = quantised(keys), quantised(values)
  return Pages(
    put(pages.keys, keys),
    put(pages.values, values),
    put(pages.key_scales, key_scales),
    put(pages.value_scales, value_scales),
  )
