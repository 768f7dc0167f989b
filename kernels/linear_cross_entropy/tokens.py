"""Statistics of each token's logits over the whole vocabulary, which may be split, and their derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.linear_cross_entropy import pallas_tpu, xla


class TokenStatistics(NamedTuple):
  """float32 [B, T]."""

  target: jax.Array  # the target's logit
  log_z: jax.Array  # log of the sum of exp(logit)
  mean: jax.Array  # of the logits, each weighted with its probability
  peak: jax.Array  # the largest logit; not differentiated


def merged(local: xla.Statistics, axis: str | None) -> TokenStatistics:
  """Of the parts of the vocabulary on the devices of mesh axis `axis`."""
  if axis is None:
    return TokenStatistics(local.target, local.peak + jnp.log(local.total), local.mean, local.peak)
  peak = jax.lax.pmax(local.peak, axis)
  share = local.total * jnp.exp(local.peak - peak)
  target, total, mean = jax.lax.psum((local.target, share, share * local.mean), axis)
  return TokenStatistics(target, peak + jnp.log(total), mean / total, peak)


def local_columns(targets: jax.Array, head: jax.Array, axis: str | None) -> jax.Array:
  """Columns of this device's part of the vocabulary; outside of it when a target is another's."""
  return targets - jax.lax.axis_index(axis) * head.shape[1] if axis else targets


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def token_statistics(hidden, head, targets, scale: float, axis: str | None) -> TokenStatistics:
  """Of logits scale * (hidden [B, T, D] times head [D, V]); `axis` is the mesh axis over which V is split."""
  return merged(_by_platform("forward", scale, hidden, head, local_columns(targets, head, axis)), axis)


def _by_platform(function: str, scale: float, hidden, head, columns, *rest):
  """`forward` or `backward` of the platform's implementation."""
  chosen: dict[str, ModuleType] = {"default": xla}
  if pallas_tpu.supported(hidden, head):
    chosen["tpu"] = pallas_tpu

  def of(module: ModuleType) -> Callable:
    return lambda hidden, head, columns, *rest: getattr(module, function)(hidden, head, columns, scale, *rest)

  functions = {name: of(module) for name, module in chosen.items()}
  return jax.lax.platform_dependent(hidden, head, columns, *rest, **functions)


def _forward(hidden, head, targets, scale, axis):
  found = token_statistics(hidden, head, targets, scale, axis)
  return found, (hidden, head, targets, found)


def _backward(scale, axis, residuals, gradients):
  hidden, head, targets, found = residuals
  if axis:  # every device has the same statistics, and a part of their cotangents
    gradients = jax.lax.psum(gradients, axis)
  # Of a logit: mean's derivative is probability * (1 + logit - mean), log_z's is probability.
  constant = gradients.log_z + gradients.mean * (1.0 - found.mean)
  columns = local_columns(targets, head, axis)
  of_logits = found.log_z, constant, gradients.mean, gradients.target
  return *_by_platform("backward", scale, hidden, head, columns, *of_logits), None


token_statistics.defvjp(_forward, _backward)
