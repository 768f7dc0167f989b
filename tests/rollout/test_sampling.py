"""Distributions and draws against a reference in float64, written from definitions."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import logsumexp
from scipy.stats import chisquare

from qwen3_jax.rollout.sampling import Adjustments, Controls, SamplingParams, _gumbel, draw, log_distribution
from qwen3_jax.sharding import make_mesh

log_distribution = jax.jit(log_distribution)
draw = jax.jit(draw)


def reference(logits, sampling, prompted, generated):
  """A row's log-probabilities, and the least distance of any token from a threshold that it is not exactly at."""
  x = np.array(logits, np.float64)
  for token in range(len(x)):
    x[token] += sampling.logit_bias.get(token, 0)
    if prompted[token] or generated[token]:
      x[token] = x[token] / sampling.repetition_penalty if x[token] > 0 else x[token] * sampling.repetition_penalty
    x[token] -= sampling.presence_penalty if generated[token] else 0
    x[token] -= sampling.frequency_penalty * generated[token]
  margins = [np.inf]

  def at_least(values, threshold):
    margins.extend(abs(values[(values != threshold) & np.isfinite(values)] - threshold))
    return values >= threshold

  if sampling.temperature == 0:
    at_least(x, x.max())
    return np.where(np.arange(len(x)) == x.argmax(), 0, -np.inf), min(margins)
  x /= sampling.temperature
  if sampling.top_k:
    kth = np.sort(x)[::-1][min(sampling.top_k, len(x)) - 1]
    x = np.where(at_least(x, kth), x, -np.inf)
  kept = x > -np.inf
  if sampling.top_p < 1:
    falling = np.sort(x)[::-1]
    together = np.cumsum(np.exp(falling - logsumexp(x)))
    margins.extend(abs(together - sampling.top_p))
    kept &= at_least(x, falling[np.argmax(together >= sampling.top_p)])
  if sampling.min_p:
    kept &= at_least(x, x.max() + np.log(sampling.min_p))
  x = np.where(kept, x, -np.inf)
  return x - logsumexp(x), min(margins)


@dataclasses.dataclass
class Batch:
  logits: np.ndarray
  sampling: list[SamplingParams]
  prompted: np.ndarray
  generated: np.ndarray

  def inputs(self, rows=slice(None)):
    logits, sampling = jnp.array(self.logits[rows], jnp.float32), self.sampling[rows]
    bias = np.zeros(logits.shape, np.float32)
    for row, params in zip(bias, sampling):
      row[list(params.logit_bias)] = list(params.logit_bias.values())
    adjustments = Adjustments(*map(jnp.array, (self.generated[rows], self.prompted[rows], bias)))
    return logits, Controls.of(sampling), adjustments

  def log_distribution(self, rows=slice(None)):
    return np.array(log_distribution(*self.inputs(rows)))


def random_batch(V, R=96, seed=0) -> Batch:
  """Rows of many kinds. Numbers are exact in binary where tokens can then be exactly equal, as many are."""
  rng = np.random.default_rng([seed, V])
  logits = rng.normal(size=(R, V)) * rng.choice([0.5, 3, 10], (R, 1))
  logits = np.where(rng.random((R, 1)) < 0.5, np.round(logits * 2) / 2, logits).astype(np.float32)
  logits[rng.random((R, V)) < rng.choice([0, 0, 0.5], (R, 1))] = -1e9
  logits[rng.random((R, V)) < rng.choice([0, 0, 0.5], (R, 1))] = -np.inf
  logits[np.arange(R), rng.integers(V, size=R)] = rng.choice([0.0, -0.0, 4], R)

  def params():
    choices = {
      "temperature": [0.0, 0.3, 0.75, 2],
      "top_k": [1, 2, 5, V - 1, V, V + 1, 2**31 - 1],
      "top_p": [1e-50, 1e-6, *rng.random(3), 1 - 1e-3],
      "min_p": [1e-4, *rng.random(2) / 5, 1],
      "presence_penalty": [-1.5, 0.5, 2],
      "frequency_penalty": [-0.5, 0.25, 1],
      "repetition_penalty": [0.5, 1.25, 2],
      "logit_bias": [{int(t): float(rng.choice([-100, -1.5, 1, 20])) for t in rng.integers(V, size=3)}],
    }
    share = rng.choice([0.15, 0.5, 0.8])
    return SamplingParams(**{name: rng.choice(values) for name, values in choices.items() if rng.random() < share})

  sampling = [SamplingParams(), *(params() for _ in range(R - 1))]
  return Batch(logits, sampling, rng.random((R, V)) < 0.2, rng.poisson(0.3, (R, V)).astype(np.int32))


@pytest.mark.parametrize("V", [2, 3, 17, 300])
def test_distribution(V):
  """All kinds of rows in one batch, and some of them alone."""
  clear = 0
  for seed in range(5):
    batch = random_batch(V, seed=seed)
    actual = batch.log_distribution()
    for r, sampling in enumerate(batch.sampling):
      expected, margin = reference(batch.logits[r], sampling, batch.prompted[r], batch.generated[r])
      if margin > 1e-5:  # else rounding may decide
        np.testing.assert_allclose(actual[r], expected, rtol=1e-6, atol=1e-5, err_msg=f"row {r}: {sampling}")
        clear += 1
  assert clear > 0.97 * 5 * len(batch.sampling)
  for r in range(8):
    np.testing.assert_allclose(batch.log_distribution(slice(r, r + 1))[0], actual[r], rtol=1e-6, atol=1e-6)


def distribution(logits, **options):
  return np.array(log_distribution(jnp.array([logits], jnp.float32), Controls.of([SamplingParams(**options)]))[0])


def kept(logits, **options):
  return np.flatnonzero(distribution(logits, **options) > -np.inf).tolist()


def test_tokens_of_equal_probability_are_kept_or_dropped_together():
  assert kept([1, 2, 1, 0, 1], top_k=2) == [0, 1, 2, 4]
  assert kept([1, 2, 1, 0, 1], top_k=1) == kept([1, np.nextafter(np.float32(1), 2)], top_k=1) == [1]
  assert kept([0.0, 1, -0.0, -1], top_k=2) == [0, 1, 2]
  assert kept([1, 2, 1, 0, 1], top_p=0.5) == [0, 1, 2, 4]  # the most likely one has 0.44
  assert kept([2, 2, 1], min_p=1.0) == [0, 1]
  assert kept([2, 2, 1], top_p=1e-30) == [0, 1]
  assert kept([1, 2, 2], temperature=0) == [1]


def test_top_p_that_is_exactly_reached():
  """Of 1/2, 1/4, 1/8, 1/8, which are exact in float32; the float above takes one more group."""
  logits = np.log([2, 8, 2, 4])
  above = lambda x: float(np.nextafter(np.float32(x), np.float32(1)))
  np.testing.assert_array_equal(np.exp(distribution(logits)), np.array([2, 8, 2, 4]) / 16)
  assert kept(logits, top_p=0.5) == [1]
  assert kept(logits, top_p=above(0.5)) == kept(logits, top_p=0.75) == [1, 3]
  assert kept(logits, top_p=above(0.75)) == [0, 1, 2, 3]


def test_extreme_temperatures_and_logits_stay_finite():
  np.testing.assert_array_equal(np.exp(distribution([29, 30, -1e9], temperature=2e-38)), [0, 1, 0])
  np.testing.assert_allclose(distribution([1e9, -1e9, 0], temperature=1e30), np.log([1 / 3] * 3), rtol=1e-6)
  assert np.isfinite(distribution([1e9, -1e9, 0], top_k=3, top_p=0.9, min_p=1e-3)[0])


def test_adjustments():
  """Without any, all is as with empty ones; a token that is drawn is counted in the rows that run."""
  logits, controls, adjustments = random_batch(17, R=8).inputs()
  empty = jax.tree.map(jnp.zeros_like, adjustments)
  plain = log_distribution(logits, controls)
  np.testing.assert_allclose(plain, log_distribution(logits, controls, empty), rtol=1e-6, atol=1e-6)
  after = adjustments.after(jnp.array([3, 3, 0, 16, 5, 6, 7, 8]), jnp.arange(8) % 3 == 0)
  new = after.generated - adjustments.generated
  assert np.argwhere(new).tolist() == [[0, 3], [3, 16], [6, 7]] and new.sum() == 3


def keys(requests, steps):
  """As the engine's: [requests * steps, 2], each step's key folded from its request's."""
  of_request = jax.random.split(jax.random.PRNGKey(0), requests)
  folded = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(of_request, jnp.arange(steps))
  return folded.reshape(-1, 2)


ALL = {
  "temperature": 0.8,
  "top_k": 9,
  "top_p": 0.85,
  "min_p": 0.1,
  "presence_penalty": 0.4,
  "frequency_penalty": 0.3,
  "repetition_penalty": 1.3,
  "logit_bias": {1: 1.0, 4: -0.5, 9: 0.5},
}
CASES = {name: {name: value} for name, value in ALL.items()}
CASES |= {"none": {}, "all": ALL, "all, min_p strictest": ALL | {"min_p": 0.3}}
MASKED = {"all": {"min_p"}, "all, min_p strictest": {"top_k", "top_p"}}  # filters that another one is stricter than


def wrong(name, value):
  """A filter switched off, or a penalty the other way round."""
  if name in ("temperature", "repetition_penalty"):
    return 1 / value
  if name in ("presence_penalty", "frequency_penalty"):
    return -value
  return {token: -bias for token, bias in value.items()} if name == "logit_bias" else getattr(SamplingParams(), name)


def p_value(tokens, log_probabilities):
  """Of a chi-square test; 0 where a token was drawn that has no probability."""
  counts = np.bincount(tokens, minlength=len(log_probabilities))
  possible = log_probabilities > -np.inf
  if counts[~possible].any():
    return 0.0
  expected = np.exp(log_probabilities[possible]) * len(tokens)
  assert possible.sum() > 1 and expected.min() > 5
  return chisquare(counts[possible], expected).pvalue


@pytest.mark.parametrize("case", CASES)
def test_draws(case):
  """131072 draws are of the distribution, and would not be of one in which anything were otherwise."""
  options = CASES[case]
  rng = np.random.default_rng(5)
  logits = rng.normal(size=16).astype(np.float32) * 1.2
  prompted, generated = rng.random(16) < 0.4, rng.poisson(0.7, 16).astype(np.int32)
  batch = Batch(logits[None], [SamplingParams(**options)], prompted[None], generated[None])
  tokens = np.array(draw(jnp.broadcast_to(batch.log_distribution(), (2**17, 16)), keys(128, 1024)))
  exact = lambda options: reference(logits, SamplingParams(**options), prompted, generated)[0]
  assert p_value(tokens, exact(options)) > 1e-3
  rejected = {name for name in options if p_value(tokens, exact(options | {name: wrong(name, options[name])})) < 1e-9}
  assert rejected == set(options) - MASKED.get(case, set())


def test_noise_is_finite(monkeypatch):
  """Where a uniform number could round to 0 or 1, too."""
  monkeypatch.setattr(jax.random, "bits", lambda *_: jnp.array([0, 2**32 - 1], jnp.uint32))
  np.testing.assert_allclose(_gumbel(None, 2), [33 * np.log(2), -np.log(24 * np.log(2))], rtol=1e-5)


def test_noise_tells_rare_tokens_apart():
  """A token of probability p is drawn where its noise is above about -log p: 23 random bits have few values there."""
  noise = np.concatenate([_gumbel(key, 2**20) for key in keys(4, 1)])
  for height in (2, 8, 11, 13):
    expected = len(noise) * -np.expm1(-np.exp(-height))
    assert abs((noise > height).sum() - expected) < 4 * np.sqrt(expected)
  highest = noise[noise > 9]
  assert len(highest) > 400 and len(set(highest)) == len(highest)
  np.testing.assert_array_equal(draw(jnp.zeros((4, 2**20)), keys(4, 1)), noise.reshape(4, -1).argmax(axis=1))


def test_draws_follow_the_rows_own_keys():
  """The same token from the same key, wherever the row is and whatever the others are."""
  R, V = 64, 300
  own, others = (jnp.array(jax.nn.log_softmax(batch.logits)) for batch in (random_batch(V, R), random_batch(V, R, 1)))
  own, k = own.at[:32].set(-jnp.log(V)).at[33].set(-jnp.inf).at[33, 7].set(0.0), keys(8, 8)
  tokens = draw(own, k)
  np.testing.assert_array_equal(draw(own, k), tokens)
  assert len(set(tokens[:32].tolist())) > 25 and tokens[33] == 7  # uniform rows, and one without a choice
  assert np.mean(draw(own, jnp.roll(k, 1, axis=0))[:32] == tokens[:32]) < 0.1
  np.testing.assert_array_equal(draw(own[::-1], k[::-1])[::-1], tokens)
  for r in (0, 33, 63):
    assert draw(own[r : r + 1], k[r : r + 1])[0] == tokens[r]
    assert draw(others.at[r].set(own[r]), k[::-1].at[r].set(k[r]))[r] == tokens[r]


def test_what_has_no_probability_is_never_drawn():
  """Of rows with few tokens left, some with one, beside rows with many."""
  R, V = 4096, 64
  rng = np.random.default_rng(0)
  possible = rng.random((R, V)) < rng.choice([0.02, 0.3, 1], (R, 1))
  possible[np.arange(R), rng.integers(1, V, size=R)] = True
  scores = np.where(possible, rng.normal(size=(R, V)) * 20, -np.inf)
  log_probabilities = jax.nn.log_softmax(jnp.array(scores, jnp.float32))
  for seed in range(4):
    tokens = draw(log_probabilities, jax.random.split(jax.random.PRNGKey(seed), R))
    assert possible[np.arange(R), tokens].all()


def test_split_over_a_mesh():
  """Rows over data and vocabulary over tensor: the tokens of one device."""
  batch = random_batch(300)
  mesh = make_mesh({"data": 2, "tensor": 4})
  place = lambda x: jax.device_put(x, NamedSharding(mesh, P("data", "tensor") if x.shape[1:] == (300,) else P("data")))
  inputs, k = batch.inputs(), keys(12, 8)
  split = log_distribution(*jax.tree.map(place, inputs))
  assert {shard.data.shape for shard in split.addressable_shards} == {(48, 75)}
  np.testing.assert_allclose(split, log_distribution(*inputs), rtol=1e-6, atol=1e-5)
  sample = jax.jit(lambda inputs, keys: draw(log_distribution(*inputs), keys))
  placed = jax.tree.map(place, inputs), place(k)
  np.testing.assert_array_equal(sample(*placed), sample(inputs, k))
  assert "48,300]" not in sample.lower(*placed).compile().as_text()  # no device holds whole rows


NUMBERS = [name for name in ALL if name != "logit_bias"]
BAD = [(name, value) for name in NUMBERS for value in (np.nan, np.inf, -np.inf, 1e39, 10**400, "1", None, True, 1j, [])]
BAD += [("temperature", -0.1), ("top_k", -1), ("top_k", 1.5), ("top_k", 2**31), ("top_p", 0), ("top_p", -0.1)]
BAD += [("top_p", 1.01), ("min_p", -0.1), ("min_p", 1.01), *(("repetition_penalty", value) for value in (0, -1, 1e-50))]
BAD += [("logit_bias", value) for value in (None, [3], 5)]
BAD_BIASES = [(token, 1.0) for token in (-1, "3", 1.0, True, None)]
BAD_BIASES += [(3, value) for value in ("x", None, np.inf, np.nan, 1e39, True)]


def test_bad_parameters_are_named():
  cases = [(name, value, f"{name}={value!r}") for name, value in BAD]
  cases += [("logit_bias", {token: bias}, f"logit_bias[{token!r}]={bias!r}") for token, bias in BAD_BIASES]
  for name, value, named in cases:
    with pytest.raises(ValueError, match=re.escape(f"SamplingParams: {named}, expected ")):
      SamplingParams(**{name: value})
  with pytest.raises(ValueError, match=r"temperature=-1, .*; top_p=2, .*; logit_bias\[-5\]=1,"):  # all at once
    SamplingParams(temperature=-1, top_p=2, logit_bias={-5: 1})


def test_adjusts():
  assert [name for name, value in ALL.items() if SamplingParams(**{name: value}).adjusts] == list(ALL)[4:]
  assert not SamplingParams(logit_bias={3: 0.0}).adjusts
