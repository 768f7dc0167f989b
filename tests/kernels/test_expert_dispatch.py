"""Rows gathered from tokens, and summed back to them, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_kernels import kernels_in

from kernels.expert_dispatch import api, pallas_tpu, xla

GROUP = api.GROUP


def no_token_twice(T, R, seed=0):
  """Indices of which each group holds a token at most once, and some are out of range."""
  rng = np.random.default_rng(seed)
  groups = [rng.permutation(max(T, GROUP))[:GROUP] for _ in range(R // GROUP)]
  index = np.concatenate(groups)
  index[rng.random(R) < 0.2] = -1
  return np.where(index < T, index, T + 3)


def one_popular_token(T, R):
  """Token 5 is in each group; whole tiles of rows in the middle and at the end are out of range."""
  index = no_token_twice(T, R)
  index[index == 5] = -1
  index[::GROUP] = 5
  index[R // 3 : R // 2] = -1
  index[-R // 4 :] = T
  return index


# Tokens, rows, columns and the indices. With tiles of 16 neither tokens nor rows fill the last one; the widest case is
# two panels and a part of one.
CASES = {
  "random": (21, 56, 256, no_token_twice),
  "popular": (40, 96, 512, one_popular_token),
  "none": (16, 24, 256, lambda T, R: np.full(R, -1)),
  "one token": (1, 8, 256, no_token_twice),
  "panels": (8, 16, 20 * 256, no_token_twice),
}


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(pallas_tpu, "_TILE", 16)
  monkeypatch.setattr(pallas_tpu, "_STRIP", 16)
  monkeypatch.setattr(pallas_tpu, "_PIECE", 8)
  monkeypatch.setattr(pallas_tpu, "_PIECES", 2)


def arrays(case, dtype):
  """x [T, D], rows [R, D] with NaN in those out of range, index and weights [R]"""
  T, R, D, indices = case
  rng = np.random.default_rng(1)
  index = indices(T, R)
  valid = (index >= 0) & (index < T)
  rows = np.where(valid[:, None], rng.normal(size=(R, D)), np.nan)
  weights = np.where(valid, rng.normal(size=R), np.nan)
  x = rng.normal(size=(T, D))
  return (
    jnp.asarray(x, dtype),
    jnp.asarray(rows, dtype),
    jnp.asarray(index, jnp.int32),
    jnp.asarray(weights, jnp.float32),
  )


def exact(x):
  return np.asarray(x.astype(jnp.float32), np.float64)


def permuted(x, index):
  T = x.shape[0]
  expected = np.zeros((len(index), x.shape[1]))
  for row, token in enumerate(np.asarray(index)):
    if 0 <= token < T:
      expected[row] = exact(x)[token]
  return expected


def combined(rows, index, weights, T):
  expected = np.zeros((T, rows.shape[1]))
  for row, token in enumerate(np.asarray(index)):
    if 0 <= token < T:
      expected[token] += float(weights[row]) * exact(rows[row])
  return expected


def check(x, rows, index, weights, permute, combine):
  T = x.shape[0]
  both = jax.jit(lambda x, rows, index, weights: (permute(x, index), combine(rows, index, weights, T)))
  moved, summed = both(x, rows, index, weights)
  assert moved.dtype == summed.dtype == x.dtype
  moves, sums = permuted(x, index), combined(rows, index, weights, T)
  np.testing.assert_array_equal(exact(moved), moves)
  assert_close(summed, sums)
  if np.any((np.asarray(index) >= 0) & (np.asarray(index) < T)):  # zeros would not do
    assert np.abs(moves).max() > 1
    with pytest.raises(AssertionError):
      assert_close(jnp.zeros_like(summed), sums)


def assert_close(ours, wanted):
  """Within rounding of the result, and of a float32 sum."""
  rounding = 2.0 ** (-8 if ours.dtype == jnp.bfloat16 else -23)
  np.testing.assert_allclose(exact(ours), wanted, rtol=rounding, atol=1e-6 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_float64(case, dtype, small_tiles, interpret):
  x, rows, index, weights = arrays(CASES[case], dtype)
  assert pallas_tpu.supported(x.shape[0], *rows.shape, dtype)
  permute = lambda x, index: pallas_tpu.permute(x, index, interpret)
  combine = lambda rows, index, weights, T: pallas_tpu.combine(rows, index, weights, T, interpret)
  check(x, rows, index, weights, permute, combine)


@pytest.mark.parametrize("implementation", [xla, api])
@pytest.mark.parametrize("case", [CASES["popular"], (1, 8, 16, no_token_twice)], ids=["popular", "narrow"])
def test_xla_equals_float64(case, implementation):
  check(*arrays(case, jnp.bfloat16), implementation.permute, implementation.combine)


def test_a_table_of_several_panels_is_in_the_cases():
  assert pallas_tpu._plan_of_permute(8, 16, CASES["panels"][2], jnp.bfloat16).panels > 2


def test_what_the_kernels_do_not_take():
  assert pallas_tpu.supported(64, 64, 256, jnp.bfloat16)
  for T, R, D, dtype in [
    (64, 64, 128, jnp.bfloat16),
    (64, 64, 192, jnp.float32),
    (64, 63, 256, jnp.bfloat16),
    (64, 0, 256, jnp.bfloat16),
    (64, 64, 256, jnp.float16),
    (1 << 20, 64, 256, jnp.bfloat16),
  ]:
    assert not pallas_tpu.supported(T, R, D, dtype)


# Tokens, rows and columns of Qwen3-235B-A22B and 30B-A3B; and of few tokens.
@pytest.mark.parametrize("shape", [(8192, 20_736, 4096), (8192, 20_736, 2048), (1, 8, 256)], ids=str)
def test_kernels_compile(shape, compile_for_tpu):
  T, R, D = shape

  def there_and_back(x, index, weights):
    return api.combine(api.permute(x, index), index, weights, T)

  program = compile_for_tpu(
    there_and_back,
    jax.ShapeDtypeStruct((T, D), jnp.bfloat16),
    jax.ShapeDtypeStruct((R,), jnp.int32),
    jax.ShapeDtypeStruct((R,), jnp.float32),
  )
  kernels = kernels_in(program)
  assert sorted(kernel.name.split(".")[0] for kernel in kernels) == ["expert_combine", "expert_permute"]
