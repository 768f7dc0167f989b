"""Experts on a mesh: tokens go to the shards that hold their experts, and the results come back. No token is dropped.

Each device holds E / P experts, P the `expert` axis, and its own tokens. A chunk of tokens at a time is sorted by
expert and exchanged over that axis; what a shard receives is sorted by its experts and multiplied group by group. A
shard's buffer holds `expert_buffer` times the balanced load. When the router sends a shard more, the rest goes in
another round: memory is bounded whatever the router does, and only an unbalanced router pays time.

The backward pass is written out. It exchanges three arrays of rows (tokens again, gradients of results, gradients of
tokens) and never makes the experts' results a second time: the gradient of a router weight is <hidden, gradient of
hidden>.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels.collectives import all_gather
from kernels.expert_dispatch.api import exchange
from kernels.grouped_matmul.api import gated as grouped_gated
from kernels.grouped_matmul.api import grouped_matmul
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.remat import GATHERED, keeps_feed_forward
from qwen3_jax.sharding import MESH_AXES, TOKENS, array_spec, batch_mesh, entry_axes

AXIS = "expert"
UNBALANCED = "unbalanced_router"  # scope of what runs only when a shard gets more rows than its buffer holds


def expert_feed_forward(config: ModelConfig, x, weights, experts, gate, up, down) -> jax.Array | None:
  """`moe.grouped_dispatch` on the mesh in use, or None if there is none that splits the batch evenly.

  Each device works on its own tokens; matrices are gathered over `fsdp` and `context`, never over `expert`.
  """
  mesh = batch_mesh(*x.shape[:2])
  if mesh is None:
    return None
  into = array_spec(("experts", "expert_embed", "mlp"), gate.shape, mesh)
  out_of = array_spec(("experts", "mlp", "expert_embed"), down.shape, mesh)
  plan = _Plan(
    shards=mesh.shape[AXIS],
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
    return jax.lax.psum(y, "tensor") if into[2] else y

  specs = (TOKENS, TOKENS, TOKENS, into, into, out_of)
  return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=TOKENS, check_vma=False)(
    x, weights, experts, gate, up, down
  )


@dataclasses.dataclass(frozen=True)
class _Plan:
  shards: int  # P
  chunk: int  # tokens exchanged at a time
  buffer: float  # rows a shard can receive in a round, over the balanced load
  keep: bool  # keep the first round's products of gate and up for the backward pass

  def chunks(self, tokens: int) -> int:
    return next(n for n in range(1, tokens + 1) if tokens % n == 0 and tokens // n <= self.chunk)

  def rows(self, slots: int) -> int:
    """R: rows of a shard's buffer for chunks of so many slots on every shard."""
    return slots if self.shards == 1 else min(8 * math.ceil(self.buffer * slots / 8), self.shards * slots)


class _Routes:
  """Where the slots of one chunk go, round by round. A slot is one token's choice of one expert.

  The slots for a shard form a stream, ordered by source and then by expert; round r takes rows r*R to (r+1)*R of it.
  """

  def __init__(self, plan: _Plan, experts: jax.Array, num_experts: int):
    """experts int32 [n, k], of all experts; num_experts of this shard."""
    self.shards, self.num_experts = plan.shards, num_experts
    slot_expert = experts.reshape(-1)
    self.order = jnp.argsort(slot_expert, stable=True)  # [m] slots by expert, hence by shard
    self.inverse = jnp.argsort(self.order)
    self.R = plan.rows(slot_expert.size)
    counts = jnp.bincount(slot_expert, length=plan.shards * num_experts).astype(jnp.int32)
    if plan.shards > 1:
      counts = jax.lax.all_gather(counts, AXIS)
    counts = counts.reshape(plan.shards, plan.shards, num_experts)  # [source, shard, expert]
    self.here = jax.lax.axis_index(AXIS)
    self.sizes = jnp.sum(counts, axis=2)  # [source, shard]
    self.starts = jnp.cumsum(self.sizes, axis=0) - self.sizes  # in the stream of a shard
    self.bases = jnp.cumsum(self.sizes, axis=1) - self.sizes  # among a source's sorted slots
    self.ends = jnp.cumsum(jax.lax.dynamic_index_in_dim(counts, self.here, 1, keepdims=False).reshape(-1))
    most = jnp.max(jnp.sum(self.sizes, axis=0))
    self.rounds = jax.lax.pmax(-(-most // self.R), MESH_AXES)  # the same everywhere: rounds hold collectives

  def round(self, number) -> _Round:
    first = number * self.R
    low = jnp.clip(first - self.starts, 0, self.sizes)
    sizes = jnp.clip(first + self.R - self.starts, 0, self.sizes) - low
    stream = first + jnp.arange(self.R)
    expert = jnp.searchsorted(self.ends, stream, side="right") % self.num_experts
    expert = jnp.where(stream < self.ends[-1], expert, self.num_experts)  # the rest of the buffer sorts last
    return _Round(
      routes=self,
      sizes=sizes,
      at_source=self.bases + low,
      at_shard=jnp.maximum(self.starts + low - first, 0),
      by_expert=jnp.argsort(expert, stable=True),
      group_sizes=jnp.bincount(expert, length=self.num_experts + 1)[:-1].astype(jnp.int32),
    )

  def further_rounds(self, body, carry):
    """`body(round, carry) -> carry` over the rounds after the first, of which a balanced router needs none."""
    if self.shards == 1:
      return carry
    step = lambda carry: (carry[0] + 1, body(self.round(carry[0]), carry[1]))
    with jax.named_scope(UNBALANCED):
      return jax.lax.while_loop(lambda carry: carry[0] < self.rounds, step, (jnp.int32(1), carry))[1]


@dataclasses.dataclass(frozen=True)
class _Round:
  routes: _Routes
  sizes: jax.Array  # [source, shard]
  at_source: jax.Array  # [source, shard]: where a run starts among the source's sorted slots
  at_shard: jax.Array  # [source, shard]: where it starts in the shard's buffer
  by_expert: jax.Array  # [R]: rows of the buffer by expert
  group_sizes: jax.Array  # [E / P]

  def receive(self, slots: jax.Array) -> jax.Array:
    """Sorted slots [m, ...] of this source -> this shard's buffer [R, ...] by expert."""
    if self.routes.shards > 1:
      here = self.routes.here
      buffer = jnp.zeros((self.routes.R, *slots.shape[1:]), slots.dtype)
      slots = exchange(
        slots, buffer, self.at_source[here], self.sizes[here], self.at_shard[here], self.sizes[:, here], AXIS
      )
    return slots[self.by_expert]

  def send_back(self, buffer: jax.Array, slots: jax.Array) -> jax.Array:
    """The inverse of `receive`: writes this round's rows over `slots`."""
    buffer = buffer[jnp.argsort(self.by_expert)]
    if self.routes.shards == 1:
      return buffer
    here = self.routes.here
    return exchange(
      buffer, slots, self.at_shard[:, here], self.sizes[:, here], self.at_source[:, here], self.sizes[here], AXIS
    )

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
  k = experts.shape[1]

  def chunk(_, xs):
    x, weights, experts = xs
    routes = _Routes(plan, experts, gate.shape[0])
    slots = x[routes.order // k]

    def compute(round: _Round, results):
      rows = round.receive(slots)
      products = (round.multiply(rows, gate), round.multiply(rows, up)) if plan.keep else None
      if products is None:
        hidden = grouped_gated(rows, gate, up, round.group_sizes)
      else:
        hidden = jax.nn.silu(products[0]) * products[1]
      return round.send_back(round.multiply(round.used(hidden), down), results), products

    results, products = compute(routes.round(0), jnp.zeros_like(slots))
    results = routes.further_rounds(lambda round, results: compute(round, results)[0], results)[routes.inverse]
    y = jnp.einsum("nkd,nk->nd", results.reshape(*weights.shape, -1), weights)
    return None, (y, products)

  _, (y, products) = jax.lax.scan(chunk, None, _split(plan, x, weights, experts))
  if products is not None:
    products = (checkpoint_name(products[0], "gate"), checkpoint_name(products[1], "up"))
  return y.reshape(x.shape), (x, weights, experts, gate, up, down, products)


def _backward(plan, residuals, y_gradient):
  x, weights, experts, gate, up, down, products = residuals
  k = experts.shape[1]

  def chunk(matrix_gradients, xs):
    (x, weights, experts, gradient), products = xs
    routes = _Routes(plan, experts, gate.shape[0])
    token = routes.order // k
    slots, slot_gradients, slot_weights = x[token], gradient[token], weights.reshape(-1)[routes.order]

    def compute(round: _Round, carry, products=None):
      to_slots, to_weights, matrix_gradients = carry
      rows, row_gradients = round.receive(slots), round.receive(slot_gradients)
      weight = round.receive(slot_weights.astype(jnp.float32))[:, None].astype(rows.dtype)
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
        round.send_back(from_gate + from_up, to_slots),
        round.send_back(weight_gradient, to_weights),
        tuple(total + part for total, part in zip(matrix_gradients, parts)),
      )

    start = (jnp.zeros_like(slots), jnp.zeros(slots.shape[:1], jnp.float32), matrix_gradients)
    carry = compute(routes.round(0), start, products)
    to_slots, to_weights, matrix_gradients = routes.further_rounds(compute, carry)
    to_x = jnp.sum(to_slots[routes.inverse].reshape(*weights.shape, -1).astype(jnp.float32), axis=1).astype(x.dtype)
    return matrix_gradients, (to_x, to_weights[routes.inverse].reshape(weights.shape).astype(weights.dtype))

  inputs = (_split(plan, x, weights, experts, y_gradient), products)
  zeros = tuple(jnp.zeros(matrix.shape, jnp.float32) for matrix in (gate, up, down))
  matrix_gradients, (to_x, to_weights) = jax.lax.scan(chunk, zeros, inputs)
  to_matrices = (total.astype(matrix.dtype) for total, matrix in zip(matrix_gradients, (gate, up, down)))
  return to_x.reshape(x.shape), to_weights.reshape(weights.shape), None, *to_matrices


_feed_forward.defvjp(_forward, _backward)


def _split(plan: _Plan, *arrays: jax.Array):
  """[n, ...] -> [chunks, n / chunks, ...]"""
  chunks = plan.chunks(arrays[0].shape[0])
  return tuple(x.reshape(chunks, -1, *x.shape[1:]) for x in arrays)
