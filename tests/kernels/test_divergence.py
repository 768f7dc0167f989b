"""Divergences of two heads against float64 numpy, values and gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.linear_cross_entropy import api, reference, xla

B, T, V, K = 3, 12, 50, 6
WIDTH, TEACHER_WIDTH = 8, 5
KINDS = ("forward", "reverse", "jsd")
MIX, TEMPERATURE = 0.3, 1.7


@functools.cache
def case():
  rng = np.random.default_rng(0)
  shapes = [(B, T, WIDTH), (WIDTH, V), (B, T, TEACHER_WIDTH), (TEACHER_WIDTH, V)]
  return [jnp.asarray(rng.normal(size=shape) * (1.0 if len(shape) == 2 else 1.2), jnp.float32) for shape in shapes]


def log_softmax(hidden, head, temperature=1.0, vocabulary=None):
  """float64; columns from `vocabulary` on left out."""
  logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)[:, :vocabulary] / temperature
  logits -= logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def kl(log_p, log_q):
  return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def direct(kind, ours, theirs, mix=MIX):
  """Float64 [B, T], from log-probabilities [B, T, V]."""
  if kind == "forward":
    return kl(theirs, ours)
  if kind == "reverse":
    return kl(ours, theirs)
  mixed = np.log(mix * np.exp(theirs) + (1 - mix) * np.exp(ours))
  return mix * kl(theirs, mixed) + (1 - mix) * kl(ours, mixed)


def direct_to_logits(kind, ours, theirs, mix=MIX):
  """Float64 [B, T, V]: each token's divergence by the student's logits, by the chain rule through the softmax."""
  q, p = np.exp(ours), np.exp(theirs)
  if kind == "forward":
    by_q = -p / q
  elif kind == "reverse":
    by_q = ours - theirs + 1
  else:
    by_q = (1 - mix) * (ours - np.log(mix * p + (1 - mix) * q))
  return q * (by_q - (q * by_q).sum(-1, keepdims=True))


def divergence(kind, *arrays, **options):
  return api.divergence(*arrays, kind, **{"mix": MIX, "temperature": TEMPERATURE, **options})[0]


def with_gradients(function, hidden, head, cotangent=1.0):
  """`function(hidden, head)` [B, T], and the gradients of its sum weighted with `cotangent`."""

  def loss(hidden, head):
    found = function(hidden, head)
    return jnp.sum(found * cotangent), found

  (_, found), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
  return found, gradients


@pytest.fixture(params=[(4 * 2 * V * B, 37), (2**30, None)], ids=["chunks-37", "whole-all"])
def vocabulary(request, monkeypatch) -> int | None:
  """Columns that stand for tokens; tokens are taken in chunks, or all at once."""
  chunk_bytes, columns = request.param
  monkeypatch.setattr(xla, "CHUNK_BYTES", chunk_bytes)
  monkeypatch.setattr(xla, "_MIN_TOKENS", 1)
  return columns


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind, vocabulary):
  hidden, head, *teacher = case()
  ours, theirs = (log_softmax(*pair, TEMPERATURE, vocabulary) for pair in ((hidden, head), teacher))
  wanted = direct(kind, ours, theirs)
  cotangent = np.random.default_rng(1).normal(size=(B, T))
  function = lambda *arrays: divergence(kind, *arrays, *teacher, vocabulary=vocabulary)
  found, (of_hidden, of_head) = with_gradients(function, hidden, head, cotangent)
  assert wanted.min() > 0.05
  np.testing.assert_allclose(found, wanted, rtol=1e-5)

  to_logits = direct_to_logits(kind, ours, theirs) * cotangent[..., None] / TEMPERATURE
  to_logits = np.pad(to_logits, ((0, 0), (0, 0), (0, V - to_logits.shape[-1])))
  np.testing.assert_allclose(of_hidden, to_logits @ np.asarray(head).T, atol=1e-5)
  np.testing.assert_allclose(of_head, np.einsum("btd,btv->dv", hidden, to_logits), atol=2e-5)
  assert np.abs(np.asarray(of_hidden)).max() > 0.1
  if vocabulary:
    assert not np.any(np.asarray(of_head)[:, vocabulary:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_too(kind):
  arrays = case()
  oracle = functools.partial(reference.divergence, kind=kind, mix=MIX, temperature=TEMPERATURE)
  found, entropy = jax.jit(oracle)(*arrays)
  ours, theirs = (log_softmax(*pair, TEMPERATURE) for pair in (arrays[:2], arrays[2:]))
  np.testing.assert_allclose(found, direct(kind, ours, theirs), rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(entropy, entropy_of(ours), rtol=2e-5)


def entropy_of(log_p):
  return -(np.exp(log_p) * log_p).sum(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_comes_along(kind, vocabulary):
  """The student's, also where columns stand for no token; nothing learns from it."""
  hidden, head, *teacher = case()

  def of(hidden, head):
    return api.divergence(hidden, head, *teacher, kind, temperature=TEMPERATURE, vocabulary=vocabulary)[1]

  found, gradients = with_gradients(of, hidden, head)
  wanted = entropy_of(log_softmax(hidden, head, TEMPERATURE, vocabulary))
  assert wanted.min() > 0.5
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  assert not any(np.any(np.asarray(gradient)) for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind, monkeypatch):
  monkeypatch.setattr(xla, "_MIN_TOKENS", 1)
  found = []
  for chunk_bytes in (1, 2**30):
    monkeypatch.setattr(xla, "CHUNK_BYTES", chunk_bytes)
    function = lambda *arrays: divergence(kind, *arrays, *case()[2:])
    found.append(with_gradients(function, *case()[:2]))
  for a, b in zip(*map(jax.tree.leaves, found)):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_from_oneself(kind):
  hidden, head, *_ = case()
  found, gradients = with_gradients(lambda *arrays: divergence(kind, *arrays, *case()[:2]), hidden, head)
  np.testing.assert_allclose(found, 0, atol=1e-6)
  for gradient in gradients:
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def heads_of(p, q):
  """Arguments whose predictions are q, the student's, and p."""
  one = jnp.ones((1, 1, 1), jnp.float32)
  return one, jnp.log(jnp.asarray([q], jnp.float32)), one, jnp.log(jnp.asarray([p], jnp.float32))


def test_known_values():
  half, quarter = [0.5, 0.5], [0.25, 0.75]
  value = lambda kind, p, q, mix=0.5: float(
    jax.jit(functools.partial(api.divergence, kind=kind, mix=mix))(*heads_of(p, q))[0][0, 0]
  )
  assert value("forward", half, quarter) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-5)
  assert value("reverse", half, quarter) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)
  disjoint = [1 - 1e-9, 1e-9], [1e-9, 1 - 1e-9]
  assert value("jsd", *disjoint) == pytest.approx(math.log(2), rel=1e-5)
  assert value("forward", *disjoint) == pytest.approx(math.log(1e9), rel=1e-4)
  # The generalised divergence tends to the two others (Agarwal et al. 2024, section 2).
  small = 1e-3
  assert value("jsd", half, quarter, small) / small == pytest.approx(value("forward", half, quarter), rel=5e-3)
  assert value("jsd", half, quarter, 1 - small) / small == pytest.approx(value("reverse", half, quarter), rel=5e-3)


@functools.cache
def top(k=K, vocabulary=None):
  """The teacher's most likely tokens; of the first row's first position only two, and of its second none."""
  theirs = log_softmax(*case()[2:], vocabulary=vocabulary)
  ids = np.argsort(-theirs, axis=-1)[..., :k].astype(np.int32)
  log_p = np.take_along_axis(theirs, ids, -1)
  ids[0, 0, 2:] = -1
  ids[0, 1] = -1
  return jnp.asarray(ids), jnp.asarray(np.where(ids >= 0, log_p, np.nan), jnp.float32)


def direct_top(ours, ids, log_p):
  """Float64 [B, T] over k + 1 outcomes, and its gradient by the student's logits."""
  q = np.exp(ours)
  stored = ids >= 0
  p = np.where(stored, np.exp(np.where(stored, log_p, 0.0)), 0.0)
  q_stored = np.where(stored, np.take_along_axis(q, np.maximum(ids, 0), -1), 0.0)
  known = stored.any(-1)
  p_tail = np.where(known, 1 - p.sum(-1), 0.0)
  q_tail = 1 - q_stored.sum(-1)
  log = lambda x: np.log(np.where(x > 0, x, 1.0))
  value = (p * (log(p) - log(q_stored))).sum(-1) + p_tail * (log(p_tail) - log(q_tail))
  in_top = np.zeros(q.shape, bool)
  by_token = np.zeros(q.shape)
  for b, t, i in np.ndindex(ids.shape):
    if stored[b, t, i]:
      in_top[b, t, ids[b, t, i]] = True
      by_token[b, t, ids[b, t, i]] = p[b, t, i]
  among = np.where(in_top, 0.0, q / q_tail[..., None]) * p_tail[..., None]
  return value, q * (p.sum(-1) + p_tail)[..., None] - by_token - among


def test_of_stored_predictions(vocabulary):
  hidden, head, *_ = case()
  ids, log_p = top(vocabulary=vocabulary)
  ours, theirs = (log_softmax(*pair, vocabulary=vocabulary) for pair in ((hidden, head), case()[2:]))
  wanted, to_logits = direct_top(ours, np.asarray(ids), np.asarray(log_p, np.float64))
  cotangent = np.random.default_rng(1).normal(size=(B, T))
  function = lambda *arrays: api.top_divergence(*arrays, ids, log_p, vocabulary=vocabulary)
  found, (of_hidden, of_head) = with_gradients(function, hidden, head, cotangent)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
  assert found[0, 1] == 0 and float(jnp.min(found.at[0, 1].set(1))) > 0.05
  full = direct("forward", ours, theirs)
  assert (np.asarray(found) <= full + 1e-5).all()  # fewer outcomes tell two distributions apart less

  to_logits = np.pad(to_logits * cotangent[..., None], ((0, 0), (0, 0), (0, V - to_logits.shape[-1])))
  np.testing.assert_allclose(of_hidden, to_logits @ np.asarray(head).T, atol=1e-5)
  np.testing.assert_allclose(of_head, np.einsum("btd,btv->dv", hidden, to_logits), atol=2e-5)
  assert not np.any(np.asarray(of_hidden)[0, 1]) and np.abs(np.asarray(of_hidden)).max() > 0.1


@pytest.mark.parametrize("stored_as, error", [(np.float32, 1e-5), (np.float16, 5e-3)])
def test_all_tokens_stored_are_the_whole_divergence(stored_as, error):
  """Numbers that rounding keeps from adding up to 1 leave no mass to tokens that do not exist."""
  hidden, head, *teacher = case()
  theirs = log_softmax(*teacher)
  ids = jnp.broadcast_to(jnp.arange(V), (B, T, V))
  log_p = jnp.asarray(theirs.astype(stored_as), jnp.float32)
  if stored_as == np.float16:
    assert (1 - np.exp(np.asarray(log_p, np.float64)).sum(-1)).max() > 1e-5
  found, (of_hidden, _) = with_gradients(lambda *arrays: api.top_divergence(*arrays, ids, log_p), hidden, head)
  ours = log_softmax(hidden, head)
  np.testing.assert_allclose(found, direct("forward", ours, theirs), rtol=error, atol=error)
  np.testing.assert_allclose(of_hidden, (np.exp(ours) - np.exp(theirs)) @ np.asarray(head).T, atol=error)


def test_ones_own_stored_predictions_teach_nothing():
  ids, log_p = top()
  found, gradients = with_gradients(lambda *arrays: api.top_divergence(*arrays, ids, log_p), *case()[2:])
  np.testing.assert_allclose(found, 0, atol=1e-6)
  for gradient in gradients:
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_tails_that_are_almost_nothing():
  """The student's 1e-35 outside of what is stored, the teacher's 0.1: logarithms stay exact, gradients finite."""
  one = jnp.ones((1, 1, 1), jnp.float32)
  head = jnp.asarray([[0.0, 0.0, -80.0, -80.0]], jnp.float32)
  ids = jnp.asarray([[[0, 1]]])
  value = jax.jit(jax.value_and_grad(lambda head, p: api.top_divergence(one, head, ids, jnp.log(p))[0, 0]))
  tail = math.log(2) - 80 - math.log(2)  # of the student: 2 exp(-80) / 2
  found, gradient = value(head, jnp.asarray([[[0.45, 0.45]]]))
  assert float(found) == pytest.approx(0.9 * math.log(0.9) + 0.1 * (math.log(0.1) - tail), rel=1e-5)
  np.testing.assert_allclose(gradient[0], [0.05, 0.05, -0.05, -0.05], atol=1e-6)
  found, gradient = value(head, jnp.asarray([[[0.5, 0.5]]]))
  assert float(found) == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_stored_tokens_beyond_the_vocabulary_are_none():
  hidden, head, *_ = case()
  ids, log_p = top()
  assert np.any(np.asarray(ids) >= 37)
  function = jax.jit(functools.partial(api.top_divergence, vocabulary=37))
  found = function(hidden, head, ids, log_p)
  np.testing.assert_array_equal(found, function(hidden, head, jnp.where(ids < 37, ids, -1), log_p))
  assert 0 < float(jnp.max(found)) < 50


@pytest.mark.parametrize("name, vocabulary", [("forward", 41), ("reverse", 20), ("jsd", 20), ("top", 20), ("top", 41)])
def test_split_vocabulary_equals_whole(name, vocabulary):
  """Of two devices with 25 columns; with a vocabulary of 20 the second one has no token."""
  hidden, head, *teacher = case()
  ids, log_p = top(vocabulary=vocabulary)
  mesh = jax.make_mesh((2,), ("tensor",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))

  def value(hidden, head, teacher_head, axis=None):
    options = {"vocabulary": vocabulary, "vocabulary_axis": axis}
    if name == "top":
      return jnp.sum(jnp.sin(api.top_divergence(hidden, head, ids, log_p, **options)))
    return jnp.sum(jnp.sin(divergence(name, hidden, head, teacher[0], teacher_head, **options)))

  def split(hidden, head):
    columns = P(None, "tensor")
    local = functools.partial(value, axis="tensor")
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), columns, columns), out_specs=P(), check_vma=False)
    return mapped(hidden, head, teacher[1])

  whole = lambda hidden, head: value(hidden, head, teacher[1])
  both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, head) for f in (split, whole)]
  for a, b in zip(*map(jax.tree.leaves, both)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    assert float(jnp.max(jnp.abs(b))) > 0.1


@pytest.mark.parametrize("name", [*KINDS, "top"])
def test_logits_of_the_whole_batch_never_exist(name):
  many, V = 2048, 8192
  arrays = [(4, many, 16), (16, V)]
  teacher = [((4, many, 8), jnp.float32), ((8, V), jnp.float32)]
  if name == "top":
    teacher = [((4, many, 4), jnp.int32), ((4, many, 4), jnp.float32)]
  function = api.top_divergence if name == "top" else functools.partial(divergence, name)
  arguments = [jax.ShapeDtypeStruct(*shape) for shape in [*((shape, jnp.float32) for shape in arrays), *teacher]]
  loss = lambda *arguments: jnp.sum(function(*arguments))
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * many * V / 1.3  # of one model's logits: 256 MiB
  sizes = [math.prod(map(int, found.split(","))) for found in re.findall(r"\[(\d[\d,]*)\]", compiled.as_text())]
  assert 4 * V < max(sizes) <= 4 * many * V / 4, max(sizes)  # a chunk's logits are the largest array of all


def test_arguments_are_checked():
  hidden, head, *teacher = case()
  with pytest.raises(ValueError, match="divergence: hidden"):
    api.divergence(hidden, head, hidden, head[:, 1:])
  with pytest.raises(ValueError, match=r"kind 'revers', expected one of .*did you mean 'reverse'"):
    api.divergence(hidden, head, *teacher, "revers")
  with pytest.raises(ValueError, match=r"mix 1\.0"):
    api.divergence(hidden, head, *teacher, "jsd", mix=1.0)
  with pytest.raises(ValueError, match=r"vocabulary 51, expected 1 .. 50"):
    api.divergence(hidden, head, *teacher, vocabulary=51)
  with pytest.raises(ValueError, match="top_divergence: hidden"):
    api.top_divergence(hidden, head, top()[0], top()[1][:, :, 1:])
