"""Experts on a mesh: every shard sees the tokens of all, and sends back what its own experts make of them.

Each device holds E / P experts, P the `expert` axis, and its own tokens. A chunk of tokens at a time is gathered over
that axis; each shard computes the slots that chose its experts, sorted by expert, and what it adds to each token is
summed as it is scattered. Gathering and scattering send P - 1 rows a token each way, an all-to-all of slots
k (P - 1) / P: no more up to P = k = 8, at one hop a row. And the TPU compiler makes a ragged all-to-all wait, while
these run beside the experts: the next chunk is gathered, and the last scattered, while one is computed.

A shard's buffer holds `expert_buffer` times the balanced load. A shard to which the router sends more works in
further rounds: no token is dropped, memory is bounded whatever the router does, and only an unbalanced router pays
time.

The backward pass is written out. It gathers tokens and gradients, scatters gradients, and never makes the experts'
results a second time: the gradient of a router weight is <hidden, gradient of hidden>.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels.collectives import all_gather, reduce_scatter
from kernels.expert_dispatch.api import GROUP, combine, permute
from kernels.grouped_matmul.api import gated as grouped_gated
from kernels.grouped_matmul.api import grouped_matmul
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.remat import GATHERED, keeps_feed_forward
from qwen3_jax.sharding import TOKENS, array_spec, batch_mesh, entry_axes, on_shards

AXIS = "expert"
UNBALANCED = "unbalanced_router"  # scope of what runs only when a shard gets more rows than its buffer holds


def expert_feed_forward(config: ModelConfig, x, weights, experts, gate, up, down) -> jax.Array | None:
  """`moe.grouped_dispatch` on the mesh in use, or None if there is none that splits the batch evenly.

  Each device works on its own tokens; matrices are gathered over `fsdp` and `context`, never over `expert`.
  """
  mesh = batch_mesh(*x.shape[:2])
  if mesh is None:
    return None
  into = array_spec(("experts", "expert_embed", "expert_mlp"), gate.shape, mesh)
  out_of = array_spec(("experts", "expert_mlp", "expert_embed"), down.shape, mesh)
  plan = _Plan(
    axes=entry_axes(into[0]),
    shards=math.prod(mesh.shape[axis] for axis in entry_axes(into[0])),
    chunk=config.expert_dispatch_tokens,
    buffer=config.expert_buffer,
    keep=keeps_feed_forward(config),
  )

  def local(x, weights, experts, gate, up, down):
    whole = lambda matrix, entry, dimension: checkpoint_name(all_gather(matrix, entry_axes(entry), dimension), GATHERED)
    gate, up, down = whole(gate, into[1], 1), whole(up, into[1], 1), whole(down, out_of[2], 2)
    b, t, D = x.shape
    flat = lambda a: a.reshape(b * t, a.shape[-1])
    y = _feed_forward(plan, flat(x), flat(weights), flat(experts), gate, up, down).reshape(b, t, D)
    return jax.lax.psum(y, "tensor") if "tensor" in (*entry_axes(into[0]), *entry_axes(into[2])) else y

  specs = (TOKENS, TOKENS, TOKENS, into, into, out_of)
  return on_shards(local, mesh, in_specs=specs, out_specs=TOKENS)(x, weights, experts, gate, up, down)


@dataclasses.dataclass(frozen=True)
class _Plan:
  axes: tuple[str, ...]  # that experts lie over: `expert`, or none if they do not divide; when decoding `tensor`, too
  shards: int  # P
  chunk: int  # tokens of a shard that are gathered at a time
  buffer: float  # rows a shard computes in a round, over the balanced load
  keep: bool  # keep the first round's products of gate and up for the backward pass

  def chunks(self, tokens: int) -> int:
    return next(n for n in range(1, tokens + 1) if tokens % n == 0 and tokens // n <= self.chunk)

  def split(self, tree):
    """[n, ...] -> [chunks, n / chunks, ...]"""
    return jax.tree.map(lambda a: a.reshape(self.chunks(a.shape[0]), -1, *a.shape[1:]), tree)

  def rows(self, slots: int, num_experts: int) -> int:
    """R: rows of the buffer for so many slots of all shards, with room to start each expert at a multiple of GROUP."""
    load = slots if self.shards == 1 else min(math.ceil(self.buffer * slots / self.shards), slots)
    return GROUP * (-(-load // GROUP) + num_experts)


class _Routes:
  """Where the slots of a gathered chunk go that chose this shard's experts. A slot is a token's choice of an expert.

  Sorted by expert, each expert's from a multiple of GROUP on, they form a stream of rows; round r takes rows r*R to
  (r+1)*R of it.
  """

  def __init__(self, plan: _Plan, choices: tuple[jax.Array, jax.Array], num_experts: int):
    """Weights and experts [S, k] that tokens chose, of all experts; num_experts of this shard."""
    weights, experts = choices
    self.weights, self.k = weights.reshape(-1).astype(jnp.float32), experts.shape[1]
    self.R = plan.rows(experts.size, num_experts)
    self.shards = plan.shards
    expert = experts.reshape(-1) - jax.lax.axis_index(plan.axes) * num_experts
    expert = jnp.where((expert >= 0) & (expert < num_experts), expert, num_experts)  # others' sort last
    self.order = jnp.argsort(expert, stable=True)
    counts = jnp.sum(expert[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    self.padding = -counts % GROUP  # of each expert's rows
    self.ends = jnp.cumsum(counts + self.padding)  # of each expert's rows
    self.starts = self.ends - counts - self.padding

  def round(self, number) -> _Round:
    first = number * self.R
    row = first + jnp.arange(self.R)
    before = row[:, None] >= self.ends  # [R, E / P]
    is_padding = (row[:, None] >= self.ends - self.padding) & ~before
    used = (row < self.ends[-1]) & ~jnp.any(is_padding, axis=1)
    place = row - jnp.sum(jnp.where(before, self.padding, 0), axis=1)  # among sorted slots
    slot = self.order[jnp.where(used, place, 0)]
    within = lambda edges: jnp.clip(edges - first, 0, self.R)
    return _Round(
      slot=jnp.where(used, slot, self.order.size),
      token=jnp.where(used, slot, self.order.size) // self.k,
      weight=jnp.where(used, self.weights[slot], 0.0),
      group_sizes=within(self.ends) - within(self.starts),
    )

  def further_rounds(self, body, carry):
    """`body(round, carry) -> carry` over the rounds after the first, of which a balanced router needs none."""
    if self.shards == 1:
      return carry
    step = lambda carry: (carry[0] + 1, body(self.round(carry[0]), carry[1]))
    with jax.named_scope(UNBALANCED):
      return jax.lax.while_loop(lambda carry: carry[0] * self.R < self.ends[-1], step, (jnp.int32(1), carry))[1]


@dataclasses.dataclass(frozen=True)
class _Round:
  """Rows sorted by expert. A row that no slot uses has the slot and token after the last, and weight 0."""

  slot: jax.Array  # [R]
  token: jax.Array  # [R]
  weight: jax.Array  # float32 [R]
  group_sizes: jax.Array  # [E / P]

  def multiply(self, rows: jax.Array, matrices: jax.Array) -> jax.Array:
    return grouped_matmul(rows, matrices, self.group_sizes)

  def used(self, rows: jax.Array) -> jax.Array:
    """`rows` with zeros after the last group, whose products are arbitrary."""
    return jnp.where((jnp.arange(rows.shape[0]) < jnp.sum(self.group_sizes))[:, None], rows, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _feed_forward(plan: _Plan, x, weights, experts, gate, up, down):
  """x [n, D], weights and experts [n, k]; gate, up [E / P, D, F], down [E / P, F, D] -> [n, D]."""
  return _forward(plan, x, weights, experts, gate, up, down)[0]


def _forward(plan, x, weights, experts, gate, up, down):
  matrices = (gate, up, down)
  compute = functools.partial(_forward_chunk, plan, matrices)
  choices = _gathered(plan.split((weights, experts)), dimension=1)  # [C, P n, k]
  _, y, products = _pipeline(compute, None, plan.split(x), choices, (None, None, None))
  name = lambda pair: pair and (checkpoint_name(pair[0], "gate"), checkpoint_name(pair[1], "up"))
  return y.reshape(x.shape), (x, choices, matrices, tuple(map(name, products)))


def _backward(plan, residuals, y_gradient):
  x, choices, matrices, products = residuals
  compute = functools.partial(_backward_chunk, plan, matrices)
  zeros = tuple(jnp.zeros(matrix.shape, jnp.float32) for matrix in matrices)
  totals, (to_x, to_weights), _ = _pipeline(compute, zeros, plan.split((x, y_gradient)), choices, products)
  weights = choices[0]
  to_weights = to_weights.reshape(x.shape[0], -1).astype(weights.dtype)
  to_matrices = (total.astype(matrix.dtype) for total, matrix in zip(totals, matrices))
  return to_x.reshape(x.shape), to_weights, None, *to_matrices


_feed_forward.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=0)
def _forward_chunk(plan, matrices, _, x, choices, __):
  """What this shard's experts add to the tokens x [S, D] of all shards; what is kept."""
  gate, up, down = matrices
  routes = _Routes(plan, choices, gate.shape[0])

  def one_round(round: _Round, total):
    rows = permute(x, round.token)
    if plan.keep:
      products = (round.multiply(rows, gate), round.multiply(rows, up))
      hidden = jax.nn.silu(products[0]) * products[1]
    else:
      products, hidden = None, grouped_gated(rows, gate, up, round.group_sizes)
    results = round.multiply(hidden, down)
    return total + combine(results, round.token, round.weight, x.shape[0]), products

  total, products = one_round(routes.round(0), jnp.zeros((), x.dtype))
  return None, routes.further_rounds(lambda round, total: one_round(round, total)[0], total), products


@functools.partial(jax.jit, static_argnums=0)
def _backward_chunk(plan, matrices, matrix_gradients, sent, choices, products):
  """Adds to the gradients of matrices, and makes this shard's part of those of tokens [S, D] and weights [S, k]."""
  gate, up, down = matrices
  x, gradient = sent
  routes = _Routes(plan, choices, gate.shape[0])

  def one_round(round: _Round, carry, products=None):
    to_x, to_slots, matrix_gradients = carry
    rows, row_gradients = permute(x, round.token), permute(gradient, round.token)
    weight = round.weight[:, None].astype(rows.dtype)
    gated, to_gated = jax.vjp(round.multiply, rows, gate)  # not computed where its value is not used
    linear, to_linear = jax.vjp(round.multiply, rows, up)
    gated, linear = (round.used(product) for product in products or (gated, linear))
    hidden, to_hidden = jax.vjp(lambda gated, linear: jax.nn.silu(gated) * linear, gated, linear)
    _, to_result = jax.vjp(round.multiply, weight * hidden, down)
    hidden_gradient, down_gradient = to_result(row_gradients)
    hidden_gradient = round.used(hidden_gradient)
    weight_gradient = jnp.sum(hidden.astype(jnp.float32) * hidden_gradient.astype(jnp.float32), axis=-1)
    gated_gradient, linear_gradient = to_hidden(weight * hidden_gradient)
    from_gate, gate_gradient = to_gated(gated_gradient)
    from_up, up_gradient = to_linear(linear_gradient)
    parts = (gate_gradient, up_gradient, down_gradient)
    return (
      to_x + combine(from_gate + from_up, round.token, jnp.ones_like(round.weight), x.shape[0]),
      to_slots.at[round.slot].set(weight_gradient, mode="drop"),
      tuple(total + part for total, part in zip(matrix_gradients, parts)),
    )

  start = (jnp.zeros((), x.dtype), jnp.zeros(routes.order.shape, jnp.float32), matrix_gradients)
  carry = routes.further_rounds(one_round, one_round(routes.round(0), start, products))
  to_x, to_slots, matrix_gradients = carry
  return matrix_gradients, (to_x, to_slots.reshape(choices[0].shape)), None


def _pipeline(compute, carry, sent, choices, kept):
  """`compute(carry, gathered, choices, kept) -> (carry, partial, kept)` for every chunk in turn.

  While one chunk is computed, the next of `sent` [C, n, ...] is gathered, and the last one's `partial` [P n, ...] is
  summed over the shards and scattered. `kept` has three parts, so that no part is copied: of the first chunk of one or
  two, of all but the last [C - 1, ...] of more, and of the last of two or more; None where there are no such chunks.

  Returns the carry, the scattered parts [C, n, ...], and what is kept.
  """
  C = jax.tree.leaves(sent)[0].shape[0]
  at = lambda i, tree: jax.tree.map(lambda a: a[i], tree)
  stack = lambda *chunks: jax.tree.map(lambda *arrays: jnp.stack(arrays), *chunks)

  here = _gathered(at(0, sent))
  if C == 1:
    carry, partial, first = compute(carry, here, at(0, choices), kept[0])
    return carry, stack(_scattered(partial)), (first, None, None)

  def step(state, xs):
    carry, here, partial = state
    following, choices, kept = xs
    following, arrived = _gathered(following), _scattered(partial)
    carry, partial, kept = compute(carry, here, choices, kept)
    return (carry, following, partial), (arrived, kept)

  earlier: tuple = ()
  if C == 2:
    following = _gathered(at(1, sent))
    carry, partial, first = compute(carry, here, at(0, choices), kept[0])
    here, between = following, None
  else:  # one program for all chunks but the last: before the first of them, zeros are scattered
    first = None
    nothing = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, carry, here, at(0, choices), None)[1]
    )
    xs = (at(slice(1, None), sent), at(slice(None, -1), choices), kept[1])
    (carry, here, partial), (arrived, between) = jax.lax.scan(step, (carry, here, nothing), xs)
    earlier = (at(slice(1, None), arrived),)
  arrived_then = _scattered(partial)
  carry, partial, last = compute(carry, here, at(-1, choices), kept[2])
  ends = stack(arrived_then, _scattered(partial))
  everything = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *earlier, ends)
  return carry, everything, (first, between, last)


def _gathered(tree, dimension: int = 0):
  """[..., n, ...] of each shard -> [..., P n, ...]."""
  return jax.tree.map(lambda a: all_gather(a, (AXIS,), dimension), tree)


def _scattered(tree):
  """[P n, ...] of each shard, summed -> [n, ...]."""
  return jax.tree.map(lambda a: reduce_scatter(a, (AXIS,), 0), tree)
