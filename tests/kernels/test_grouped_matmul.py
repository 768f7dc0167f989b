"""Grouped matmul against numpy, one group at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_kernels import kernels_in

from kernels.grouped_matmul import api, pallas_tpu, reference

GROUPS = [(5, 3, 8), (0, 16, 0), (1, 0, 0, 15), (0, 0, 1), (64, 65, 63, 0, 7)]


def case(groups, D=12, F=7):
  rng = np.random.default_rng(0)
  lhs = rng.normal(size=(sum(groups), D)).astype(np.float32)
  rhs = rng.normal(size=(len(groups), D, F)).astype(np.float32)
  return jnp.asarray(lhs), jnp.asarray(rhs), jnp.asarray(groups, jnp.int32)


def by_group(lhs, rhs, groups):
  ends = np.cumsum(groups)
  parts = [
    np.asarray(lhs, np.float64)[end - n : end] @ np.asarray(rhs[e], np.float64)
    for e, (n, end) in enumerate(zip(groups, ends))
  ]
  return np.concatenate(parts)


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("implementation", [api.grouped_matmul, reference.grouped_matmul, jax.lax.ragged_dot])
def test_values_and_gradients(implementation, groups):
  lhs, rhs, sizes = case(groups)
  cotangent = np.random.default_rng(1).normal(size=(sum(groups), rhs.shape[2])).astype(np.float32)

  @jax.jit
  def both(lhs, rhs, sizes, cotangent):
    product, pullback = jax.vjp(lambda lhs, rhs: implementation(lhs, rhs, sizes), lhs, rhs)
    return product, *pullback(cotangent)

  product, d_lhs, d_rhs = both(lhs, rhs, sizes, cotangent)
  np.testing.assert_allclose(product, by_group(lhs, rhs, groups), atol=2e-5)
  np.testing.assert_allclose(d_lhs, by_group(cotangent, np.swapaxes(rhs, 1, 2), groups), atol=2e-5)
  end = 0
  for e, n in enumerate(groups):
    expected = np.asarray(lhs[end : end + n], np.float64).T @ cotangent[end : end + n]
    np.testing.assert_allclose(d_rhs[e], expected, atol=5e-5)
    end += n


def test_shapes_are_checked():
  lhs, rhs, sizes = case((5, 3))
  with pytest.raises(ValueError, match="grouped_matmul"):
    api.grouped_matmul(lhs, rhs, sizes[:1])


def test_gated_equals_its_parts():
  lhs, gate, sizes = case((5, 0, 11))
  up = gate[::-1]
  expected = jax.nn.silu(by_group(lhs, gate, sizes)) * by_group(lhs, up, sizes)
  np.testing.assert_allclose(api.gated(lhs, gate, up, sizes), expected, atol=2e-5)


# Groups that straddle tiles of 32 rows and strips of 16, tiny and empty ones, one of all rows, and none at all.
TILED = [(30, 3, 0, 1, 62), (0, 0, 96), (7, 0, 0), (1,) * 40, (0, 0)]


@pytest.mark.parametrize("unused", [0, 21])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("groups", TILED, ids=str)
def test_kernel_equals_float64(groups, dtype, unused, monkeypatch, interpret):
  """Rows after the last group hold NaN, which must reach neither the rows of groups nor the matrices' gradients."""
  monkeypatch.setattr(pallas_tpu, "_TILE", 32)
  monkeypatch.setattr(pallas_tpu, "_STRIP", 16)
  if sum(groups) + unused == 0:
    unused = 5
  lhs, rhs, sizes = case(groups, D=24, F=40)
  lhs, rhs = jnp.pad(lhs, ((0, unused), (0, 0)), constant_values=np.nan).astype(dtype), rhs.astype(dtype)
  rows = sum(groups)
  cotangent = np.zeros((rows + unused, 40), np.float32)
  cotangent[:rows] = np.random.default_rng(1).normal(size=(rows, 40))
  cotangent = jnp.asarray(cotangent, dtype)

  @jax.jit
  def of_kernels(lhs, rhs, cotangent):
    out, pullback = jax.vjp(lambda lhs, rhs: pallas_tpu.grouped_matmul(lhs, rhs, sizes, interpret), lhs, rhs)
    return out, *pullback(cotangent), pallas_tpu.gated(lhs, rhs, -rhs, sizes, interpret)

  out, to_lhs, to_rhs, mixed = of_kernels(lhs, rhs, cotangent)
  assert out.dtype == to_lhs.dtype == to_rhs.dtype == mixed.dtype == dtype

  lhs, rhs, cotangent = (np.asarray(x.astype(jnp.float32), np.float64) for x in (lhs, rhs, cotangent))
  by_row = np.repeat(np.arange(len(groups)), groups)
  expected = np.einsum("md,mdf->mf", lhs[:rows], rhs[by_row])
  wanted_lhs = np.einsum("mf,mdf->md", cotangent[:rows], rhs[by_row])
  wanted_rhs = np.zeros_like(rhs)
  np.add.at(wanted_rhs, by_row, np.einsum("md,mf->mdf", lhs[:rows], cotangent[:rows]))
  for ours, wanted in ((out[:rows], expected), (to_lhs[:rows], wanted_lhs), (to_rhs, wanted_rhs)):
    assert_close(ours, wanted, dtype)
    if rows:
      with pytest.raises(AssertionError):
        assert_close(jnp.zeros_like(ours), wanted, dtype)
  if rows:
    assert_close(mixed[:rows], -expected * expected / (1 + np.exp(-expected)), dtype)


def assert_close(ours, wanted, dtype):
  """Within rounding of the result, and of a float32 sum."""
  rounding = 2.0 ** (-8 if dtype == jnp.bfloat16 else -23)
  ours = np.asarray(ours.astype(jnp.float32), np.float64)
  np.testing.assert_allclose(ours, wanted, rtol=rounding, atol=3e-6 * max(1.0, np.abs(wanted).max(initial=0.0)))


# Of one device: rows, D, F, groups. Qwen3-235B-A22B and 30B-A3B, experts split over 4, 16 and 1.
PRODUCTION = [(40_960, 4096, 1536, 32), (8_192, 4096, 1536, 8), (40_960, 2048, 768, 128)]


@pytest.mark.parametrize("shape", PRODUCTION, ids=str)
def test_kernel_compiles(shape, compile_for_tpu):
  """Forward, both gradients and the fused gate, and their work is counted."""
  M, D, F, E = shape

  def all_of_it(lhs, gate, up, gradient, sizes):
    product, pullback = jax.vjp(lambda lhs, gate: api.grouped_matmul(lhs, gate, sizes), lhs, gate)
    return product, pullback(gradient), api.gated(lhs, gate, up, sizes)

  bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  matrix = bf16(E, D, F)
  program = compile_for_tpu(all_of_it, bf16(M, D), matrix, matrix, bf16(M, F), jax.ShapeDtypeStruct((E,), jnp.int32))
  kernels = kernels_in(program)
  assert len(kernels) == 4
  products = sorted(
    int(re.search(r'"flops":"(\d+)"', kernel.backend_config)[1]) / (2 * M * D * F) for kernel in kernels
  )
  assert products == [1, 1, 1, 2]
