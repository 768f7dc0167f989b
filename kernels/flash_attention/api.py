"""Causal attention within packed documents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels.flash_attention import blockwise, cudnn, pallas_tpu, xla
from kernels.flash_attention.pairs import Masks


def attention(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """Token t sees tokens s <= t of its segment; scores are scaled by H**-0.5; softmax in float32.

  A Pallas kernel on TPU if H is a multiple of 128, cuDNN's on an NVIDIA GPU where it takes the shapes, `xla` on a CPU,
  `blockwise` elsewhere.

  Args:
    query: [B, T, N, H]; query head n uses key/value head n // (N // K).
    key, value: [B, T, K, H].
    segment_ids: int32 [B, T].

  Returns:
    [B, T, N, H] in query's dtype.
  """
  B, T = query.shape[:2]
  _check(query, key, value, T)
  if segment_ids.shape != (B, T):
    raise ValueError(f"attention: segment_ids {segment_ids.shape}, expected {(B, T)}")
  masks = Masks(segment_ids, segment_ids, jnp.arange(T, dtype=jnp.int32))
  flash = lambda query, key, value, masks: _flash(True, query, key, value, masks)[0]
  if not cudnn.supported(query):
    return flash(query, key, value, masks)
  on_gpu = lambda query, key, value, masks: cudnn.attention(query, key, value, masks.query_segments)
  return jax.lax.platform_dependent(query, key, value, masks, cuda=on_gpu, default=flash)


def attention_with_log_sums(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  query_segments: jax.Array,
  key_segments: jax.Array,
  query_order: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Attention on keys of any positions, with what merging it with attention on other keys takes.

  Outputs o1, o2 on two sets of keys merge to (exp(l1) * o1 + exp(l2) * o2) / (exp(l1) + exp(l2)) of their log sums;
  differentiable through both. Implementations as of `attention`, without cuDNN's and `xla`.

  Args:
    query: [B, T, N, H].
    key, value: [B, S, K, H].
    query_segments, key_segments: int32 [B, T] and [B, S]; a query sees keys of its segment.
    query_order: int32 [T]; query t sees keys s <= query_order[t], which is less than S.

  Returns:
    Output [B, T, N, H] in query's dtype, and the log-sum-exp of the scores, float32 [B, N, T]. A query that sees no
    key gets a log sum below -1e28, which gives it no weight in a merge, and a finite output without meaning.
  """
  B, T = query.shape[:2]
  S = key.shape[1]
  _check(query, key, value, S)
  masks = Masks(query_segments, key_segments, query_order)
  shapes, expected = [mask.shape for mask in masks], [(B, T), (B, S), (T,)]
  if shapes != expected:
    raise ValueError(f"attention: query_segments, key_segments and query_order {shapes}, expected {expected}")
  return _flash(False, query, key, value, masks)


def _check(query, key, value, S: int) -> None:
  B, _, N, H = query.shape
  if key.shape != value.shape or key.shape[:2] != (B, S) or key.shape[3] != H or N % key.shape[2]:
    raise ValueError(f"attention: query {query.shape}, key {key.shape} and value {value.shape} do not fit")


def _by_platform(function: str, own_positions: bool, query: jax.Array, *rest):
  """`forward` or `backward` of the platform's implementation."""
  chosen: dict[str, ModuleType] = {"default": blockwise}
  if own_positions:
    chosen["cpu"] = xla
  if pallas_tpu.supported(query):
    chosen["tpu"] = pallas_tpu
  functions: dict[str, Callable] = {name: getattr(module, function) for name, module in chosen.items()}
  return jax.lax.platform_dependent(query, *rest, **functions)


# One derivative over all implementations, not one of each: what is kept for it is then the same on every platform.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(own_positions: bool, query, key, value, masks: Masks) -> tuple[jax.Array, jax.Array]:
  """`own_positions`: the keys are those of the queries' positions."""
  return _forward(own_positions, query, key, value, masks)[0]


def _forward(own_positions, query, key, value, masks):
  output, log_sums = _by_platform("forward", own_positions, query, key, value, masks)
  # Named, so that a remat policy can keep what the backward pass reads.
  output, log_sums = (checkpoint_name(x, "attention_output") for x in (output, log_sums))
  return (output, log_sums), (query, key, value, masks, output, log_sums)


def _backward(own_positions, residuals, gradients):
  query, key, value, masks, output, log_sums = residuals
  gradient, to_log_sums = gradients
  # A score's gradient is its weight times (to_weight - delta): delta of the output, and the log sum's own.
  deltas = jnp.sum(gradient.astype(jnp.float32) * output.astype(jnp.float32), axis=-1).swapaxes(1, 2) - to_log_sums
  return *_by_platform("backward", own_positions, query, key, value, masks, log_sums, deltas, gradient), None


_flash.defvjp(_forward, _backward)
