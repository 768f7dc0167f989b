"""Softmax statistics of a linear head, and their gradients, on TPU: logits exist a block at a time, in VMEM.

Forward, a block of tokens stays while blocks of the vocabulary pass, and the statistics are kept up as in
FlashAttention. Backward, a block of the vocabulary stays while the tokens pass: the logits are made once more, the
gradient of the head is summed in VMEM and written once, and the gradient of hidden is read, added to and written a
block at a time. Four products in all, where three and the logits in HBM are the other way (`xla`): with few tokens held
at a time, logits and the sum of the head's gradient cost more time there than a product does here, the more so the
more a chip computes for each byte that it reads.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import chip
from kernels.linear_cross_entropy.xla import Statistics
from kernels.mosaic import HIDDEN, LANES, LOG2_E, across, column, dot, over_lanes, parameters, strips

_STRIP = 128  # tokens
_VOCABULARY_BLOCK = 512
_MIN_TOKEN_BLOCKS = 4  # a block of the gradient of hidden is written before it is read for the next vocabulary block


def supported(hidden: jax.Array, head: jax.Array) -> bool:
  """Whether the kernels take hidden [B, T, D] and a head, or a part of one, with [., V]."""
  dtypes = hidden.dtype == head.dtype and hidden.dtype in (jnp.bfloat16, jnp.float32)
  return hidden.shape[2] % LANES == 0 and head.shape[1] >= LANES and dtypes


def _token_block(M: int, D: int, token_bytes: int, blocks: int) -> int:
  """Tokens of a block: a multiple of the lanes, that fits, and leaves so many blocks if there are tokens for that."""
  limit = 3 * chip.core().vmem_bytes // 16
  most = max(LANES, min(1024, limit // (D * token_bytes)) // LANES * LANES)
  return min(most, max(LANES, M // blocks // LANES * LANES))


def _vocabulary_block(V: int, D: int, column_bytes: int) -> int:
  limit = 3 * chip.core().vmem_bytes // 16
  widest = max(LANES, min(2 * _VOCABULARY_BLOCK, limit // (D * column_bytes)) // LANES * LANES)
  return min(widest, -(-V // LANES) * LANES)


def _rows(x: jax.Array, M: int) -> jax.Array:
  """[B, T] -> [1, M], zeros at the end."""
  x = x.reshape(1, -1)
  return jnp.pad(x, ((0, 0), (0, M - x.shape[1])))


def _tokens(hidden: jax.Array, M: int) -> jax.Array:
  """[B, T, D] -> [M, D], zeros at the end."""
  hidden = hidden.reshape(-1, hidden.shape[-1])
  return jnp.pad(hidden, ((0, M - hidden.shape[0]), (0, 0))) if M > hidden.shape[0] else hidden


def _forward_kernel(hidden, head, targets, target, peak, total, mean, tops, sums, means, found, *, V, scale):
  """hidden [m, D], head [D, v]; targets and results [1, m]; tops, sums, means, found [m, lanes]."""
  block, width = pl.program_id(1), head.shape[1]
  first_column = block * width

  @pl.when(block == 0)
  def _():
    tops[...] = jnp.full_like(tops, HIDDEN)
    for scratch in (sums, means, found):
      scratch[...] = jnp.zeros_like(scratch)

  def update(ragged: bool) -> None:
    place = first_column + jax.lax.broadcasted_iota(jnp.int32, (_STRIP, width), 1)
    for rows in strips(hidden.shape[0], _STRIP):
      logits = dot(hidden[rows, :], head[...], (1, 0)) * scale
      if ragged:
        logits = jnp.where(place < V, logits, HIDDEN)
      is_target = place == across(column(targets[:, rows]), width)
      found[rows, :] += over_lanes(jnp.where(is_target, logits, 0.0), jnp.add)
      old = tops[rows, :]
      new = jnp.maximum(old, jnp.max(over_lanes(logits, jnp.maximum), axis=1, keepdims=True))
      weights = jnp.exp2((logits - across(new, width)) * LOG2_E)
      rescale = jnp.exp2((old - new) * LOG2_E)
      tops[rows, :] = new
      sums[rows, :] = sums[rows, :] * rescale + over_lanes(weights, jnp.add)
      means[rows, :] = means[rows, :] * rescale + over_lanes(weights * logits, jnp.add)

  ragged = first_column + width > V
  pl.when(ragged)(functools.partial(update, ragged=True))
  pl.when(jnp.logical_not(ragged))(functools.partial(update, ragged=False))

  @pl.when(block == pl.num_programs(1) - 1)
  def _():
    for rows in strips(hidden.shape[0], _STRIP):
      row = lambda x: jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True), x.shape).T[:1]
      peak[:, rows] = tops[rows, :].T[:1]
      target[:, rows] = row(found[rows, :])
      total[:, rows] = row(sums[rows, :])
      mean[:, rows] = row(means[rows, :]) / row(sums[rows, :])


def forward(hidden, head, targets, scale: float, interpret=False) -> Statistics:
  """As `xla.forward`. `interpret`: as in `pallas_call`."""
  (B, T, D), V = hidden.shape, head.shape[1]
  block = _token_block(B * T, D, 2 * hidden.dtype.itemsize, 1)
  M = -(-B * T // block) * block
  width = min(_VOCABULARY_BLOCK, _vocabulary_block(V, D, 2 * head.dtype.itemsize))
  of_tokens = pl.BlockSpec((1, block), lambda i, j: (0, i))
  results = pl.pallas_call(
    functools.partial(_forward_kernel, V=V, scale=scale),
    out_shape=[jax.ShapeDtypeStruct((1, M), jnp.float32)] * 4,
    grid=(M // block, pl.cdiv(V, width)),
    in_specs=[
      pl.BlockSpec((block, D), lambda i, j: (i, 0)),
      pl.BlockSpec((D, width), lambda i, j: (0, j)),
      of_tokens,
    ],
    out_specs=[of_tokens] * 4,
    scratch_shapes=[pltpu.VMEM((block, LANES), jnp.float32)] * 4,
    compiler_params=parameters(pltpu.PARALLEL, pltpu.ARBITRARY),
    cost_estimate=_cost(1, M, D, V, hidden.dtype),
    interpret=interpret,
    name="linear_cross_entropy",
  )(_tokens(hidden, M), head, _rows(targets, M))
  return Statistics(*(x[0, : B * T].reshape(B, T) for x in results))


def _cost(products: int, M: int, D: int, V: int, dtype) -> pl.CostEstimate:
  moved = (M * D + D * V) * jnp.dtype(dtype).itemsize
  return pl.CostEstimate(flops=2 * products * M * D * V, transcendentals=M * V, bytes_accessed=products * moved)


def _backward_kernel(
  hidden, head, targets, log_z, constant, slope, of_target, before, to_hidden, to_head, head_sum, *, V, scale
):
  """hidden [m, D], head [D, v]; targets ... of_target [1, m]; before, to_hidden [m, D]; to_head, head_sum [D, v]."""
  block, width = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1), head.shape[1]
  first_column = block * width
  step = pl.program_id(2)
  beyond = first_column >= V  # no such block: one core has one less, and ends with its last again

  @pl.when((step == 0) & jnp.logical_not(beyond))
  def _():
    head_sum[...] = jnp.zeros_like(head_sum)

  @pl.when(beyond)
  def _():
    to_hidden[...] = before[...]

  def update(ragged: bool) -> None:
    place = first_column + jax.lax.broadcasted_iota(jnp.int32, (_STRIP, width), 1)
    matrix = head[...]
    if ragged:  # what lies after the vocabulary may be NaN
      inside = first_column + jax.lax.broadcasted_iota(jnp.int32, (1, width), 1) < V
      matrix = jnp.where(inside, matrix, jnp.zeros_like(matrix))
    for rows in strips(hidden.shape[0], _STRIP):
      of_row = lambda x, rows=rows: across(column(x[:, rows]), width)
      logits = dot(hidden[rows, :], matrix, (1, 0)) * scale
      probabilities = jnp.exp2((logits - of_row(log_z)) * LOG2_E)
      if ragged:
        probabilities = jnp.where(place < V, probabilities, 0.0)
      to_logits = probabilities * (of_row(constant) + of_row(slope) * logits)
      to_logits += jnp.where(place == of_row(targets), of_row(of_target), 0.0)
      to_logits = (to_logits * scale).astype(hidden.dtype)
      to_hidden[rows, :] = before[rows, :] + dot(to_logits, matrix, (1, 1))
      head_sum[...] += dot(hidden[rows, :], to_logits, (0, 0))

  ragged = first_column + width > V
  pl.when(ragged & jnp.logical_not(beyond))(functools.partial(update, ragged=True))
  pl.when(jnp.logical_not(ragged))(functools.partial(update, ragged=False))

  @pl.when(step == pl.num_programs(2) - 1)
  def _():
    to_head[...] = head_sum[...].astype(to_head.dtype)


def backward(hidden, head, targets, scale: float, log_z, constant, slope, of_target, interpret=False):
  """As `xla.backward`. `interpret`: as in `pallas_call`."""
  (B, T, D), V = hidden.shape, head.shape[1]
  block = min(512, _token_block(B * T, D, 2 * hidden.dtype.itemsize + 16, _MIN_TOKEN_BLOCKS))
  M = block * max(_MIN_TOKEN_BLOCKS, -(-B * T // block))
  width = _vocabulary_block(V, D, 4 + 2 * head.dtype.itemsize)
  vocabulary_blocks = pl.cdiv(V, width)
  cores = min(chip.core().cores, vocabulary_blocks)
  blocks = pl.cdiv(vocabulary_blocks, cores)  # of each core
  of_tokens = pl.BlockSpec((1, block), lambda c, j, i: (0, i))
  once = pl.Buffered(1)
  place = lambda c, j, i: (0, jnp.minimum(c * blocks + j, vocabulary_blocks - 1))
  of_core = pl.BlockSpec((None, block, D), lambda c, j, i: (c, i, 0))
  to_hidden, to_head = pl.pallas_call(
    functools.partial(_backward_kernel, V=V, scale=scale),
    out_shape=(jax.ShapeDtypeStruct((cores, M, D), jnp.float32), jax.ShapeDtypeStruct((D, V), head.dtype)),
    grid=(cores, blocks, M // block),
    in_specs=[
      pl.BlockSpec((block, D), lambda c, j, i: (i, 0)),
      pl.BlockSpec((D, width), place, pipeline_mode=once),
      *[of_tokens] * 5,
      of_core,
    ],
    out_specs=(of_core, pl.BlockSpec((D, width), place)),
    scratch_shapes=[pltpu.VMEM((D, width), jnp.float32)],
    input_output_aliases={7: 0},
    compiler_params=parameters(pltpu.PARALLEL, pltpu.ARBITRARY, pltpu.ARBITRARY),
    cost_estimate=_cost(3, M, D, V, hidden.dtype),
    interpret=interpret,
    name="linear_cross_entropy_gradient",
  )(
    _tokens(hidden, M),
    head,
    *(_rows(x, M) for x in (targets, log_z, constant, slope, of_target)),
    jnp.zeros((cores, M, D), jnp.float32),
  )
  return jnp.sum(to_hidden, axis=0)[: B * T].reshape(B, T, D).astype(hidden.dtype), to_head
