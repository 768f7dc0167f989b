"""Attention against a float64 computation written with loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.flash_attention import api, blockwise, reference, xla


def loops(query, key, value, segments):
  """Softmax attention, one query at a time, in float64."""
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  B, T, N, H = query.shape
  group = N // key.shape[2]
  out = np.zeros_like(query)
  for b in range(B):
    for t in range(T):
      visible = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
      for n in range(N):
        scores = key[b, visible, n // group] @ query[b, t, n] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ value[b, visible, n // group] / weights.sum()
  return out


def case(B, T, N, K, H, documents, seed=0):
  rng = np.random.default_rng(seed)
  arrays = [jnp.asarray(rng.normal(size=(B, T, heads, H)), jnp.float32) for heads in (N, K, K)]
  segments = np.sort(rng.integers(1, documents + 1, (B, T)), axis=1).astype(np.int32)
  segments[-1, T - T // 4 :] = 0
  return arrays, segments


CASES = [(2, 12, 4, 2, 8, 3), (1, 1, 2, 1, 4, 1), (2, 37, 6, 2, 16, 1), (1, 40, 4, 4, 8, 40)]


@pytest.mark.parametrize("shape", CASES, ids=str)
@pytest.mark.parametrize("attention", [api.attention, blockwise.causal_attention, reference.attention])
def test_equals_loops(attention, shape):
  arrays, segments = case(*shape)
  np.testing.assert_allclose(attention(*arrays, jnp.asarray(segments)), loops(*arrays, segments), atol=2e-6)


@pytest.mark.parametrize("attention", [api.attention, blockwise.causal_attention])
def test_blocks_and_gradients_equal_the_reference(attention, monkeypatch):
  monkeypatch.setattr(blockwise, "_MAX_BLOCK", 8)
  monkeypatch.setattr(xla, "_MAX_BLOCK", 16)  # several blocks, the last one short
  monkeypatch.setattr(xla, "_MIN_BLOCK", 1)
  arrays, segments = case(2, 40, 4, 2, 8, 4)

  def gradients(attention):
    loss = lambda *arrays: jnp.sum(jnp.sin(3 * attention(*arrays, jnp.asarray(segments))))
    return jax.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)

  value, ours = gradients(attention)
  expected, wanted = gradients(reference.attention)
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  for a, b in zip(ours, wanted):
    assert float(jnp.linalg.norm(b)) > 1.0
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_gradient_by_finite_differences():
  with jax.enable_x64(True):
    arrays, segments = case(1, 6, 2, 1, 4, 2)
    arrays = [x.astype(jnp.float64) for x in arrays]
    loss = lambda *arrays: jnp.sum(jnp.sin(api.attention(*arrays, jnp.asarray(segments))))
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*arrays)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=x.shape) for x in arrays]
    step = 1e-4
    ahead, behind = (loss(*(x + sign * step * d for x, d in zip(arrays, directions))) for sign in (1, -1))
    slope = float(sum(jnp.sum(g * d) for g, d in zip(gradients, directions)))
    assert abs(slope) > 0.1
    # Scores and softmax are float32 inside.
    assert float((ahead - behind) / (2 * step)) == pytest.approx(slope, rel=2e-2)


def test_shapes_are_checked():
  arrays, segments = case(2, 12, 4, 2, 8, 3)
  with pytest.raises(ValueError, match="do not fit"):
    api.attention(arrays[0], arrays[1][:, :4], arrays[2], jnp.asarray(segments))
  with pytest.raises(ValueError, match="segment_ids"):
    api.attention(*arrays, jnp.asarray(segments[:, :5]))
