"""A matrix times every token: on one device, and on a mesh that splits the tokens and the matrix."""

from __future__ import annotations

import functools

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from kernels.collectives import all_gather, all_reduce, reduce_scatter
from kernels.ordering import after
from qwen3_jax.models.remat import GATHERED
from qwen3_jax.sharding import TOKEN_AXES, TOKENS, array_spec, batch_mesh, entry_axes, on_shards

_LARGE = 2**15  # elements of a matrix that a CPU multiplies by few rows in another way


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, matrix: jax.Array, names: tuple[str, ...]) -> jax.Array:
  """x [B, T, *I] times matrix [I, *O] -> [B, T, *O]; `names` are the logical names of the matrix's axes.

  With its own derivative. On a mesh the matrix is gathered from the shards of tokens once for the forward and once for
  the backward pass, and its gradient is summed as it is scattered to them; left to itself XLA reduces the whole. On a
  CPU JAX's derivative gives the matrix's gradient as a transposed product, for which XLA copies every activation into
  transposed order first (a quarter more time per step in a small model).
  """
  return _forward(x, matrix, names)[0]


def _forward(x, matrix, names):
  mesh = batch_mesh(*x.shape[:2])
  if mesh is not None:
    matrix = checkpoint_name(_gathered(matrix, array_spec(names, matrix.shape, mesh), mesh), GATHERED)
  return _product(x, matrix), (x, matrix)


def _backward(names, residuals, gradient):
  x, matrix = residuals
  mesh = batch_mesh(*x.shape[:2])
  if mesh is None:
    return _input_gradient(matrix, gradient, x.shape[2:]), _matrix_gradient(x, gradient)
  spec = array_spec(names, matrix.shape, mesh)
  kept = _without_tokens(spec)

  def local(x, matrix, gradient):
    total = _matrix_gradient(x, gradient)
    # In this order x is free before its gradient takes as much memory.
    x_gradient = _input_gradient(matrix, after(gradient, total), x.shape[2:])
    if "tensor" in kept[1:]:
      x_gradient = jax.lax.psum(x_gradient, "tensor")
    for dimension, axes in enumerate(_token_axes(spec)):
      total = reduce_scatter(total, axes, dimension)
    split = {axis for entry in spec for axis in entry_axes(entry)}
    return x_gradient, all_reduce(total, [axis for axis in TOKEN_AXES if axis not in split])

  into, out_of = P(*TOKENS, *kept[:1]), P(*TOKENS, *kept[1:])
  mapped = on_shards(local, mesh, in_specs=(into, kept, out_of), out_specs=(into, spec))
  return mapped(x, matrix, gradient)


linear.defvjp(_forward, _backward)


# The TPU compiler keeps the layout of inputs with several axes, and copies outputs that have them.


def _product(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """x [B, T, *I] times matrix [I, *O] -> [B, T, *O]"""
  if x.shape[1] == 1 and matrix.size >= _LARGE:  # decoding
    y = jax.lax.platform_dependent(x, matrix, cpu=_product_of_few, default=_product_of_many)
  else:
    y = _product_of_many(x, matrix)
  return y.reshape(*x.shape[:2], *matrix.shape[1:])


def _product_of_many(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """x [B, T, *I] times matrix [I, *O] -> [B, T, O]"""
  inputs = range(2, x.ndim), range(x.ndim - 2)
  return jax.lax.dot_general(x, matrix.reshape(*x.shape[2:], -1), (inputs, ((), ())))


def _product_of_few(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """The same for T = 1 and a large matrix on a CPU, with x in transposed order.

  XLA gives a product in the usual order to YNNPACK, which packs the matrix first: if large, that takes longer than to
  multiply a few rows. This one it gives to Eigen, which takes the matrix as it lies, and twice as long if it is small.
  """
  transposed = jax.lax.optimization_barrier(x.reshape(x.shape[0], -1).T)
  return jax.lax.dot_general(transposed, matrix.reshape(matrix.shape[0], -1), (((0,), (0,)), ((), ())))[:, None]


def _input_gradient(matrix: jax.Array, gradient: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
  """matrix [I, *O], gradient [B, T, *O] -> [B, T, *inputs]"""
  matrix = matrix.reshape(*inputs, -1)
  return jax.lax.dot_general(_flat(gradient), matrix, (((2,), (len(inputs),)), ((), ())))


def _matrix_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """x [B, T, *I], gradient [B, T, *O] -> [I, *O]"""
  product = jax.lax.dot_general(x, _flat(gradient), (((0, 1), (0, 1)), ((), ())))
  return product.reshape(-1, *gradient.shape[2:])


def _flat(gradient: jax.Array) -> jax.Array:
  """[B, T, *O] -> [B, T, O]"""
  return gradient.reshape(*gradient.shape[:2], -1)


def _gathered(matrix: jax.Array, spec: P, mesh: AbstractMesh) -> jax.Array:
  """The matrix whole on every shard of tokens, still split over `tensor`."""
  token_axes = _token_axes(spec)
  if not any(token_axes):
    return matrix

  def local(matrix):
    for dimension, axes in enumerate(token_axes):
      matrix = all_gather(matrix, axes, dimension)
    return matrix

  return on_shards(local, mesh, in_specs=spec, out_specs=_without_tokens(spec))(matrix)


def _token_axes(spec: P) -> list[tuple[str, ...]]:
  """Of each axis of an array, the mesh axes that split tokens and split it, too."""
  return [tuple(axis for axis in entry_axes(entry) if axis in TOKEN_AXES) for entry in spec]


def _without_tokens(spec: P) -> P:
  return P(*("tensor" if "tensor" in entry_axes(entry) else None for entry in spec))
