"""Chunked cross-entropy against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_cross_entropy import api, reference, xla


def case(B=3, T=12, D=8, V=50, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(B, T, D)) * 2
  head = rng.normal(size=(D, V))
  targets = rng.integers(0, V, (B, T))
  targets[0, :6] = np.argmax(hidden[0, :6] @ head, axis=-1)  # some predictions are right
  weights = rng.choice([0.0, 1.0, 0.5], (B, T))
  weights[0, :6] = 1.0
  f32 = lambda x: jnp.asarray(x, jnp.float32)
  return f32(hidden), f32(head), jnp.asarray(targets, jnp.int32), f32(weights)


def float64(hidden, head, targets, weights, z_loss):
  """Loss, correct, and gradients of the loss, all logits at once."""
  hidden, head, weights = (np.asarray(x, np.float64) for x in (hidden, head, weights))
  targets = np.asarray(targets)
  logits = hidden @ head
  log_z = np.log(np.sum(np.exp(logits), axis=-1))
  onehot = np.eye(head.shape[1])[targets]
  loss = np.sum(weights * (log_z - np.sum(logits * onehot, -1) + z_loss * log_z**2))
  correct = np.sum(weights * (logits.argmax(-1) == targets))
  probabilities = np.exp(logits - log_z[..., None])
  d_logits = weights[..., None] * (probabilities * (1 + 2 * z_loss * log_z)[..., None] - onehot)
  return loss, correct, d_logits @ head.T, np.einsum("btd,btv->dv", hidden, d_logits)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk_bytes", [4 * 50 * 3, 4 * 50 * 3 * 5, 2**30], ids=["1", "4", "all"])
@pytest.mark.parametrize("implementation", [api.linear_cross_entropy, reference.linear_cross_entropy])
def test_loss_and_gradients(implementation, chunk_bytes, z_loss, monkeypatch):
  monkeypatch.setattr(xla, "CHUNK_BYTES", chunk_bytes)
  monkeypatch.setattr(xla, "_MIN_TOKENS", 1)
  arguments = case()
  loss, correct, d_hidden, d_head = float64(*arguments, z_loss)
  ours, ours_correct = implementation(*arguments, z_loss)
  assert float(ours) == pytest.approx(loss, rel=1e-6)
  assert float(ours_correct) == correct > 5

  scaled = lambda hidden, head: 3.0 * implementation(hidden, head, *arguments[2:], z_loss)[0]
  gradients = jax.grad(scaled, argnums=(0, 1))(*arguments[:2])
  np.testing.assert_allclose(gradients[0], 3 * d_hidden, atol=1e-5)
  np.testing.assert_allclose(gradients[1], 3 * d_head, atol=2e-5)


def test_logits_of_the_whole_batch_never_exist():
  B, T, D, V = 8, 2048, 16, 8192
  shapes = [((B, T, D), jnp.float32), ((D, V), jnp.float32), ((B, T), jnp.int32), ((B, T), jnp.float32)]
  loss = lambda *arguments: api.linear_cross_entropy(*arguments)[0]
  arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < 4 * B * T * V / 2.5  # 512 MiB of float32 logits; a chunk's are 64 MiB


def test_shapes_are_checked():
  hidden, head, targets, weights = case()
  with pytest.raises(ValueError, match="linear_cross_entropy"):
    api.linear_cross_entropy(hidden, head.T, targets, weights)
