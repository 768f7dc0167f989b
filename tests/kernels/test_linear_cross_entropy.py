"""Chunked cross-entropy against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_kernels import kernels_in
from jax.sharding import PartitionSpec as P

from kernels.linear_cross_entropy import api, pallas_tpu, reference, xla


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
  ours, ours_correct = jax.jit(lambda *arrays: implementation(*arrays, z_loss))(*arguments)
  assert float(ours) == pytest.approx(loss, rel=1e-6)
  assert float(ours_correct) == correct > 5

  scaled = lambda hidden, head: 3.0 * implementation(hidden, head, *arguments[2:], z_loss)[0]
  gradients = jax.jit(jax.grad(scaled, argnums=(0, 1)))(*arguments[:2])
  np.testing.assert_allclose(gradients[0], 3 * d_hidden, rtol=1e-6, atol=1e-5)
  np.testing.assert_allclose(gradients[1], 3 * d_head, rtol=1e-6, atol=2e-5)


def test_logits_of_the_whole_batch_never_exist():
  B, T, D, V = 8, 2048, 16, 8192
  shapes = [((B, T, D), jnp.float32), ((D, V), jnp.float32), ((B, T), jnp.int32), ((B, T), jnp.float32)]
  loss = lambda *arguments: api.linear_cross_entropy(*arguments)[0]
  arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < 4 * B * T * V / 2.5  # 512 MiB of float32 logits; a chunk's are 64 MiB


def test_arguments_are_checked():
  hidden, head, targets, weights = case()
  with pytest.raises(ValueError, match="linear_cross_entropy"):
    api.linear_cross_entropy(hidden, head.T, targets, weights)
  with pytest.raises(ValueError, match="token_log_probabilities: hidden"):
    api.token_log_probabilities(hidden, head, targets[:, 1:])
  with pytest.raises(ValueError, match="temperature 0"):
    api.token_log_probabilities(hidden, head, targets, temperature=0)


def softmax_of(hidden, head, temperature):
  """float64 log-probabilities [B, T, V]."""
  logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64) / temperature
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_token_log_probabilities():
  hidden, head, targets, _ = case()
  log_p = softmax_of(hidden, head, 0.7)
  ours, entropy = api.token_log_probabilities(hidden, head, targets, 0.7)
  np.testing.assert_allclose(
    ours, np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0], rtol=2e-6, atol=5e-6
  )
  np.testing.assert_allclose(entropy, -(np.exp(log_p) * log_p).sum(-1), atol=5e-6)


def of_tokens(hidden, head, targets, vocabulary_axis=None):
  """One scalar made of log-probabilities and entropies, and so of each of their gradients."""
  found = api.token_log_probabilities(hidden, head, targets, 0.7, vocabulary_axis)
  return sum(jnp.sum(jnp.sin(x)) for x in found)


def test_gradients_by_finite_differences():
  """In float32: along a direction of large slope, with a step that balances rounding and curvature."""
  hidden, head, targets, _ = case()
  loss = jax.jit(lambda hidden, head: of_tokens(hidden, head, targets))
  gradients = jax.grad(loss, argnums=(0, 1))(hidden, head)
  for n, gradient in enumerate(gradients):
    direction = gradient / jnp.linalg.norm(gradient)
    moved = lambda step, n=n, direction=direction: float(
      loss(*(x + step * direction if m == n else x for m, x in enumerate((hidden, head))))
    )
    step = 2e-2
    slope = (8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))) / (12 * step)
    assert float(jnp.linalg.norm(gradient)) > 0.5
    assert slope == pytest.approx(float(jnp.linalg.norm(gradient)), rel=5e-3)


def test_split_vocabulary_equals_whole():
  hidden, head, targets, _ = case()
  mesh = jax.make_mesh((2,), ("tensor",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))

  def loss(hidden, head):
    local = lambda hidden, head, targets: of_tokens(hidden, head, targets, "tensor")
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P(None, "tensor"), P()), out_specs=P(), check_vma=False)(
      hidden, head, targets
    )

  both = [
    jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, head) for f in (loss, lambda *a: of_tokens(*a, targets))
  ]
  for a, b in zip(*map(jax.tree.leaves, both)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    assert float(jnp.max(jnp.abs(b))) > 0.1


# B, T, D, V: V that blocks do not divide, one token, and a vocabulary smaller than a block.
KERNEL_CASES = [(2, 300, 128, 1300), (1, 1, 256, 128), (1, 40, 128, 700)]


@pytest.mark.parametrize("cores, dtype", [(1, jnp.float32), (2, jnp.float32), (2, jnp.bfloat16)])
@pytest.mark.parametrize("shape", KERNEL_CASES, ids=str)
def test_kernels_equal_float64(shape, dtype, cores, monkeypatch, interpret):
  B, T, D, V = shape
  monkeypatch.setattr(pallas_tpu.chip, "SMALLEST", pallas_tpu.chip.Core(2**21, cores, 128))  # small blocks
  hidden, head, targets, _ = case(B, T, D, V)
  hidden, head = (hidden / 4).astype(dtype), (head / 4).astype(dtype)
  scale = 0.8
  rng = np.random.default_rng(2)
  of_logits = [jnp.asarray(rng.normal(size=(B, T)), jnp.float32) for _ in range(3)]

  @jax.jit
  def of_kernels(hidden, head, targets, of_logits):
    found = pallas_tpu.forward(hidden, head, targets, scale, interpret)
    log_z = found.peak + jnp.log(found.total)
    return found, pallas_tpu.backward(hidden, head, targets, scale, log_z, *of_logits, interpret)

  found, gradients = of_kernels(hidden, head, targets, of_logits)
  assert [x.dtype for x in gradients] == [dtype, dtype]

  wide = [np.asarray(x.astype(jnp.float32), np.float64) for x in (hidden, head)]
  logits = wide[0] @ wide[1] * scale
  log_p = softmax_of(*wide, 1 / scale)
  constant, slope, of_target = (np.asarray(x, np.float64)[..., None] for x in of_logits)
  to_logits = np.exp(log_p) * (constant + slope * logits) + of_target * np.eye(V)[np.asarray(targets)]
  to_logits *= scale
  wanted = [
    np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0],
    logits.max(-1),
    np.exp(logits - logits.max(-1, keepdims=True)).sum(-1),
    (np.exp(log_p) * logits).sum(-1),
    to_logits @ wide[1].T,
    np.einsum("btd,btv->dv", wide[0], to_logits),
  ]
  precise = [*found, *gradients] if dtype == jnp.float32 else list(found)
  for n, (a, b) in enumerate(zip([*found, *gradients], wanted)):
    rounding = 2.0 ** (-18 if n < len(precise) else -7)
    close = lambda a, b=b, rounding=rounding: np.testing.assert_allclose(
      np.asarray(a.astype(jnp.float32)), b, rtol=rounding, atol=rounding * max(1.0, np.abs(b).max())
    )
    close(a)
    with pytest.raises(AssertionError):
      close(jnp.zeros_like(a))


# D, V and tokens of one device: 0.6B, and 235B with its vocabulary over 8.
PRODUCTION = {"0.6B": (1024, 151_936, 16_384), "235B": (4096, 18_992, 16_384)}


@pytest.mark.parametrize("name", PRODUCTION)
def test_kernels_compile(name, compile_for_tpu):
  """Loss and gradients at production shapes; logits never reach HBM."""
  D, V, M = PRODUCTION[name]
  bf16, per_token = jnp.bfloat16, lambda dtype: jax.ShapeDtypeStruct((4, M // 4), dtype)
  loss = lambda hidden, head, *rest: api.linear_cross_entropy(hidden, head, *rest)[0]
  both = jax.value_and_grad(loss, argnums=(0, 1))
  arrays = jax.ShapeDtypeStruct((4, M // 4, D), bf16), jax.ShapeDtypeStruct((D, V), bf16)
  program = compile_for_tpu(both, *arrays, per_token(jnp.int32), per_token(jnp.float32))
  kernels = kernels_in(program)
  assert len(kernels) == 2
  assert program.memory_analysis().temp_size_in_bytes < 2 * D * V + 8 * M * D * 2 + 2**24
