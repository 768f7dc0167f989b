"""Attention against a float64 computation written with loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_kernels import kernels_in

from kernels.flash_attention import api, blockwise, pallas_tpu, reference, xla
from kernels.flash_attention.pairs import PARTIAL, WHOLE, Masks, key_block_of, key_ranges, query_block_of, table


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


def in_blocks(query, key, value, segments):
  order = jnp.arange(query.shape[1], dtype=jnp.int32)
  return api.attention_with_log_sums(query, key, value, segments, segments, order)[0]


@pytest.mark.parametrize("shape", CASES, ids=str)
@pytest.mark.parametrize("attention", [api.attention, in_blocks, reference.attention])
def test_equals_loops(attention, shape):
  arrays, segments = case(*shape)
  found = jax.jit(attention)(*arrays, jnp.asarray(segments))
  np.testing.assert_allclose(found, loops(*arrays, segments), atol=2e-6)


@pytest.mark.parametrize("attention", [api.attention, in_blocks])
def test_blocks_and_gradients_equal_the_reference(attention, monkeypatch):
  monkeypatch.setattr(blockwise, "_MAX_BLOCK", 8)
  monkeypatch.setattr(xla, "_MAX_BLOCK", 16)  # several blocks, the last one short
  monkeypatch.setattr(xla, "_MIN_BLOCK", 1)
  arrays, segments = case(2, 40, 4, 2, 8, 4)

  def gradients(attention):
    loss = lambda *arrays: jnp.sum(jnp.sin(3 * attention(*arrays, jnp.asarray(segments))))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)

  value, ours = gradients(attention)
  expected, wanted = gradients(reference.attention)
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  for a, b in zip(ours, wanted):
    assert float(jnp.linalg.norm(b)) > 1.0
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-5)


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
  order = jnp.zeros(5, jnp.int32)
  with pytest.raises(ValueError, match="query_order"):
    api.attention_with_log_sums(*arrays, jnp.asarray(segments), jnp.asarray(segments), order)


def test_parts_merge_through_log_sums():
  """Attention on the first and on the last keys, merged, is attention on all, and so are its gradients."""
  arrays, _ = case(1, 24, 4, 2, 8, 1)
  segments = jnp.zeros((1, 24), jnp.int32)
  order = jnp.arange(24, dtype=jnp.int32)

  def merged(query, key, value):
    parts = [
      api.attention_with_log_sums(
        query, key[:, keys], value[:, keys], segments, segments[:, keys], jnp.clip(order - keys.start, -1, 11)
      )
      for keys in (slice(0, 12), slice(12, 24))
    ]
    top = jnp.maximum(parts[0][1], parts[1][1])
    weights = [jnp.exp(log_sums - top).swapaxes(1, 2)[..., None] for _, log_sums in parts]
    return sum(w * out for w, (out, _) in zip(weights, parts)) / sum(weights)

  whole = lambda query, key, value: reference.attention(query, key, value, segments)
  both = [
    jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sum(jnp.sin(3 * f(*a))), argnums=(0, 1, 2)))(*arrays)
    for f in (merged, whole)
  ]
  for a, b in zip(*map(jax.tree.leaves, both)):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-5)


def packed(lengths, T):
  ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  return np.pad(ids, (0, T - len(ids)))


# One giant document, many tiny ones, some of the length of a block, and padding; sorted and not.
PACKED = {
  "one": lambda T: packed([T], T),
  "tiny": lambda T: packed([3] * (T // 3), T),
  "blocks": lambda T: packed([128] * (T // 128), T),
  "mixed": lambda T: packed([T // 2, T // 5, 1, 7], T),
  "unsorted": lambda T: np.roll(packed([T // 2, T // 5, 1, 7], T), T // 3),
}


@pytest.mark.parametrize("documents", PACKED)
def test_table_holds_what_is_visible(documents):
  """Each visible score is in exactly one pair; a pair called whole hides none; no pair is all hidden where documents
  are in order."""
  T, block = 1024, 128
  segments = np.stack([PACKED[documents](T), PACKED["one"](T)])
  masks = Masks(jnp.asarray(segments), jnp.asarray(segments), jnp.arange(T))
  pairs = table(key_ranges(masks, block, block))
  for b in range(2):
    visible = (segments[b][:, None] == segments[b][None, :]) & np.tril(np.ones((T, T), bool))
    found = np.zeros((T // block, T // block), bool)
    for entry in np.asarray(pairs.entries[b][: pairs.longest]):
      if entry & (WHOLE | PARTIAL):
        i, j = int(query_block_of(entry)), int(key_block_of(entry))
        seen = visible[i * block : (i + 1) * block, j * block : (j + 1) * block]
        assert not found[i, j]
        found[i, j] = True
        assert bool(entry & WHOLE) == bool(seen.all())
        assert seen.any() or documents == "unsorted"
    blocks = visible.reshape(T // block, block, T // block, block).any((1, 3))
    assert not (blocks & ~found).any()
  if documents == "tiny":  # neighbours share a document but where blocks of 3 end
    assert (pairs.entries[0] & (WHOLE | PARTIAL) != 0).sum() == 8 + 5


def kernel_case(B, T, S, N, K, dtype, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((B, T, N, 128), (B, S, K, 128), (B, S, K, 128), (B, T, N, 128))
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes], rng


# B, T, S, N, K, documents. With S > T, queries are of two chunks of the sequence, as under context parallelism.
KERNEL_CASES = {
  "grouped": (1, 384, 384, 4, 2, "mixed"),
  "one_token": (2, 1, 1, 2, 1, "one"),
  "odd_length": (1, 200, 200, 2, 2, "tiny"),
  "giant": (1, 384, 384, 2, 1, "one"),
  "groups_of_heads": (1, 256, 256, 6, 1, "blocks"),
  "two_sequences": (2, 256, 256, 2, 1, "mixed"),
  "unsorted": (1, 384, 384, 2, 1, "unsorted"),
  "two_chunks": (1, 256, 512, 2, 1, "mixed"),
}


@pytest.mark.parametrize(
  "name, dtype",
  [*((name, jnp.float32) for name in KERNEL_CASES), ("grouped", jnp.bfloat16), ("two_chunks", jnp.bfloat16)],
)
def test_kernel_equals_float64(name, dtype, monkeypatch, interpret):
  small = pallas_tpu._Blocks(queries=128, keys=128, heads=2, strip=64, backward_strip=128, panel=256)
  monkeypatch.setattr(pallas_tpu, "_BLOCKS", {128: small})
  B, T, S, N, K, documents = KERNEL_CASES[name]
  (query, key, value, gradient), rng = kernel_case(B, T, S, N, K, dtype)
  key_segments = np.stack([PACKED[documents](S), PACKED["one"](S)][:B]).astype(np.int32)
  order = np.arange(T, dtype=np.int32)
  if S > T:
    order = np.concatenate([np.arange(128), np.arange(384, 512)]).astype(np.int32)
  query_segments = key_segments[:, order]
  masks = Masks(*map(jnp.asarray, (query_segments, key_segments, order)))
  to_log_sums = jnp.asarray(rng.normal(size=(B, N, T)), jnp.float32)

  @jax.jit
  def of_kernels(query, key, value, gradient, masks, to_log_sums):
    output, log_sums = pallas_tpu.forward(query, key, value, masks, interpret)
    deltas = jnp.sum(gradient.astype(jnp.float32) * output.astype(jnp.float32), axis=-1).swapaxes(1, 2) - to_log_sums
    return output, log_sums, *pallas_tpu.backward(query, key, value, masks, log_sums, deltas, gradient, interpret)

  @jax.jit
  def of_reference(wide, cotangent, masks):
    expected, pullback = jax.vjp(lambda *a: reference.attention_with_log_sums(*a, *masks), *wide)
    return *expected, *pullback(cotangent)

  ours = of_kernels(query, key, value, gradient, masks, to_log_sums)
  assert [x.dtype for x in ours] == [dtype, jnp.float32, dtype, dtype, dtype]

  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(x.astype(jnp.float32)), jnp.float64) for x in (query, key, value)]
    cotangent = jnp.asarray(np.asarray(gradient.astype(jnp.float32)), jnp.float64), to_log_sums.astype(jnp.float64)
    wanted = of_reference(wide, cotangent, masks)
    for a, b in zip(ours, wanted):
      assert_close(a, np.asarray(b), dtype)
      with pytest.raises(AssertionError):
        assert_close(jnp.zeros_like(a), np.asarray(b), dtype)


def assert_close(ours, wanted, dtype):
  """Within the rounding of weights and results to the dtype, or of float32 sums."""
  rounding = 2.0 ** (-7 if dtype == jnp.bfloat16 else -19)
  atol = rounding * max(1.0, np.abs(wanted).max())
  np.testing.assert_allclose(np.asarray(ours.astype(jnp.float32)), wanted, rtol=rounding, atol=atol)


def test_kernel_of_queries_that_see_nothing(interpret):
  """They get a log sum that gives them no weight; keys that nothing sees get gradient 0."""
  (query, key, value, gradient), _ = kernel_case(1, 128, 256, 2, 1, jnp.float32)
  segments = jnp.asarray(np.repeat([[1, 2]], 64, axis=1).reshape(1, 128), jnp.int32)
  masks = Masks(segments, jnp.where(jnp.arange(256) < 128, 1, 3)[None], jnp.full(128, 127, jnp.int32))
  output, log_sums = pallas_tpu.forward(query, key, value, masks, interpret)
  alone = segments[0] == 2
  assert np.isfinite(output).all()
  assert (log_sums[:, :, alone] < -1e28).all() and (log_sums[:, :, ~alone] > -100).all()
  gradient = gradient * ~alone[:, None, None]
  deltas = jnp.sum(gradient * output, axis=-1).swapaxes(1, 2)
  to_query, *others = pallas_tpu.backward(query, key, value, masks, log_sums, deltas, gradient, interpret)
  assert not np.asarray(to_query[:, alone]).any() and np.asarray(to_query[:, ~alone]).any()
  for x in others:
    assert not np.asarray(x[:, 128:]).any() and np.asarray(x[:, :128]).all()


# Query and key heads of one device, and lengths of queries and keys; the last has a sequence split over 8 devices.
PRODUCTION = {
  "0.6B": (16, 8, 4096, 4096),
  "235B, 32k": (64, 4, 4096, 32768),
}


@pytest.mark.parametrize("name", PRODUCTION)
def test_kernel_compiles(name, compile_for_tpu):
  N, K, T, S = PRODUCTION[name]

  def both(query, key, value, gradient, query_segments, key_segments, order):
    masks = query_segments, key_segments, order
    out, pullback = jax.vjp(lambda *a: api.attention_with_log_sums(*a, *masks)[0], query, key, value)
    return out, pullback(gradient)

  wide = lambda length, heads: jax.ShapeDtypeStruct((1, length, heads, 128), jnp.bfloat16)
  ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  program = compile_for_tpu(both, wide(T, N), wide(S, K), wide(S, K), wide(T, N), ids(1, T), ids(1, S), ids(T))
  kernels = kernels_in(program)
  panels = -(-S // pallas_tpu._Blocks().panel)
  assert len(kernels) == 1 + panels
