"""GRPO: every option against a float64 form with loops, its gradient against finite differences; invariances."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qwen3_jax.batch import Batch, Rollout
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Hidden, from_parameters, initialize
from qwen3_jax.objectives.grpo import grpo
from qwen3_jax.objectives.grpo_settings import GRPO
from qwen3_jax.sharding import batch_sharding, make_mesh
from qwen3_jax.train_state import create_state
from qwen3_jax.train_step import make_train_step

B, T, D, V, L, E, K = 4, 12, 8, 16, 2, 8, 2
# In each row: (segment, prompt tokens, sampled tokens); the last row holds no sequence that counts.
ROWS = [[(1, 2, 4), (2, 1, 3)], [(1, 3, 9)], [(1, 1, 2), (2, 2, 5)], [(1, 4, 0)]]


def make_batch(seed=0, old=True, reference=True, experts=False) -> Batch:
  rng = np.random.default_rng(seed)
  segments, weights, shares, advantages = (np.zeros((B, T)) for _ in range(4))
  for b, sequences in enumerate(ROWS):
    start = 0
    for segment, prompt, sampled in sequences:
      end = start + prompt + sampled
      segments[b, start:end] = segment
      counted = np.arange(start + prompt, end)
      if sampled > 4:
        counted = np.delete(counted, 2)  # a token that was inserted
      weights[b, counted] = 1
      shares[b, counted] = 1 / max(len(counted), 1)
      advantages[b, counted] = rng.normal() * 1.5
      start = end
  floats = lambda x: np.asarray(x, np.float32)
  # Log-probabilities far from what a small model gives: ratios from below 0.2 to above 4.
  log_probabilities = lambda: floats(weights * (-math.log(V) + rng.normal(size=(B, T)) * 0.7))
  rollout = Rollout(
    advantages=floats(advantages),
    shares=floats(shares),
    entropy_bonus=floats(weights * 0.03),
    sampling_log_probabilities=log_probabilities(),
    old_log_probabilities=log_probabilities() if old else None,
    reference_log_probabilities=log_probabilities() if reference else None,
    experts=rng.integers(0, E, (B, T, L, K)).astype(np.int16) if experts else None,
  )
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  targets = rng.integers(0, V, (B, T)).astype(np.int32)
  positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
  return Batch(tokens, targets, floats(weights), positions, segments.astype(np.int32), rollout)


def with_rollout(batch: Batch, **changes) -> Batch:
  return dataclasses.replace(batch, rollout=dataclasses.replace(batch.rollout, **changes))


class FixedHidden:
  """A model of which only the head and its input are left."""

  def __init__(self, final, head):
    self._hidden = Hidden(final, head, None, None)

  def hidden(self, *_, experts=None):
    return self._hidden


def inputs(seed=1):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(B, T, D)), rng.normal(size=(D, V)) * 0.4


def ours(settings, batch, final, head):
  """(loss, metrics), divided as the train step does."""
  output = grpo(settings)(FixedHidden(jnp.float32(final), jnp.float32(head)), batch, jax.random.PRNGKey(0))
  return output.loss_sum / output.weight, {name: x / output.weight for name, x in output.metrics.items()}


def reference(settings, batch, final, head, frozen=None):
  """(loss, metrics) token by token in float64. `frozen`: (final, head) of what carries no gradient."""
  rollout = batch.rollout

  def predictions(final, head):
    logits = final @ head / settings.temperature
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

  log_p, fixed = predictions(final, head), predictions(*(frozen or (final, head)))
  losses, metrics, counts = [], [], []
  for b, sequences in enumerate(ROWS):
    for segment, _, _ in sequences:
      where = [t for t in range(T) if batch.segment_ids[b, t] == segment and batch.loss_weights[b, t] > 0]
      if not where:
        continue
      new = {t: log_p[b, t, batch.targets[b, t]] for t in where}
      now = {t: fixed[b, t, batch.targets[b, t]] for t in where}
      old = now if rollout.old_log_probabilities is None else {t: rollout.old_log_probabilities[b, t] for t in where}
      difference = {t: new[t] - float(old[t]) for t in where}
      if settings.ratio == "sequence":
        difference = dict.fromkeys(where, sum(difference.values()) / len(where))
      total = 0.0
      of_tokens = []
      for t in where:
        A, r = float(rollout.advantages[b, t]), math.exp(difference[t])
        clipped = min(max(r, 1 - settings.clip_low), 1 + settings.clip_high)
        gain = min(r * A, clipped * A)
        dual = bool(settings.dual_clip and A < 0 and gain < settings.dual_clip * A)
        gain = settings.dual_clip * A if dual else gain
        mismatch = float(old[t]) - float(rollout.sampling_log_probabilities[b, t])
        cap = settings.importance_cap
        weight = min(math.exp(mismatch), cap) if cap else 1.0
        entropy = -np.sum(np.exp(log_p[b, t]) * log_p[b, t])
        loss = -gain * weight - float(rollout.entropy_bonus[b, t]) * entropy
        found = {
          "loss": -gain * weight,
          "entropy": entropy,
          "ratio": r,
          "clipped_high": A > 0 and r > 1 + settings.clip_high,
          "clipped_low": A < 0 and r < 1 - settings.clip_low,
          "dual_clipped": dual,
          "log_probability_gap": abs(mismatch),
          "importance": weight,
          "importance_capped": bool(cap) and mismatch > math.log(cap),
        }
        if settings.kl_coefficient:
          d = float(rollout.reference_log_probabilities[b, t]) - new[t]
          found["kl"] = math.exp(d) - d - 1
          loss += settings.kl_coefficient * found["kl"]
        total += loss
        of_tokens.append(found)
      scale = {"token": 1.0, "sequence": 1 / len(where), "constant": 1 / (settings.constant_length or 1)}
      losses.append(total * scale[settings.aggregation])
      counts.append(len(where))
      metrics.append({name: np.mean([m[name] for m in of_tokens]) for name in of_tokens[0]})
  if settings.aggregation == "token":
    share = np.array(counts) / sum(counts)
    return sum(losses) / sum(counts), {name: share @ [m[name] for m in metrics] for name in metrics[0]}
  return float(np.mean(losses)), {name: np.mean([m[name] for m in metrics]) for name in metrics[0]}


OPTIONS = {
  "default": {},
  "sequence means": {"aggregation": "sequence"},
  "constant": {"aggregation": "constant", "constant_length": 7},
  "GSPO": {"ratio": "sequence", "aggregation": "sequence", "clip_low": 0.05, "clip_high": 0.1},
  "sequence ratio, token mean": {"ratio": "sequence"},
  "KL": {"kl_coefficient": 0.2},
  "no dual clip": {"dual_clip": 0.0},
  "dual clip": {"dual_clip": 1.5},
  "not weighted": {"importance_cap": 0.0},
  "warm": {"temperature": 1.7, "clip_low": 0.1, "clip_high": 0.1},
  "all": {"ratio": "sequence", "kl_coefficient": 0.1, "importance_cap": 1.2, "temperature": 0.8, "dual_clip": 1.2},
}


@pytest.mark.parametrize("old", [True, False], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_float64_with_its_gradient(options, old):
  settings = GRPO(sequences_per_row=2, **options)
  batch, (final, head) = make_batch(old=old), inputs()
  loss, metrics = ours(settings, batch, final, head)
  expected, expected_metrics = reference(settings, batch, final, head)
  np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-6)
  if settings.aggregation == "constant":  # the loss has the scale of the loss, the rest are means of means
    expected_metrics.pop("loss"), metrics.pop("loss")
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=3e-5, atol=2e-6, err_msg=name)
  assert set(metrics) == set(expected_metrics)

  gradients = jax.grad(lambda x, w: ours(settings, batch, x, w)[0], argnums=(0, 1))(final, head)
  rng = np.random.default_rng(5)
  for _ in range(4):
    directions = rng.normal(size=final.shape), rng.normal(size=head.shape)
    h = 1e-6
    moved = [
      reference(settings, batch, final + s * h * directions[0], head + s * h * directions[1], (final, head))[0]
      for s in (1, -1)
    ]
    slope = sum(float(np.sum(np.asarray(g, np.float64) * d)) for g, d in zip(gradients, directions))
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / (2 * h), rtol=3e-4, atol=3e-5)


def test_what_the_batch_makes_happen():
  """The batch of the tests above reaches every branch, else they would show nothing."""
  metrics = ours(GRPO(sequences_per_row=2, dual_clip=1.5), make_batch(), *inputs())[1]
  for name in ("clipped_high", "clipped_low", "dual_clipped", "importance_capped"):
    assert 0 < metrics[name] < 1, name


def test_equal_advantages_of_zero_give_no_gradient():
  batch = make_batch()
  none = with_rollout(batch, advantages=0 * batch.rollout.advantages, entropy_bonus=0 * batch.rollout.entropy_bonus)
  gradients = jax.grad(lambda x, w: ours(GRPO(), none, x, w)[0], argnums=(0, 1))(*inputs())
  assert all(not np.any(np.asarray(g)) for g in gradients)
  with_advantages = jax.grad(lambda x: ours(GRPO(), batch, x, inputs()[1])[0])(inputs()[0])
  assert np.abs(np.asarray(with_advantages)).max() > 1e-3


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_only_tokens_that_count_have_a_gradient(ratio):
  settings = GRPO(kl_coefficient=0.1, ratio=ratio, sequences_per_row=2)
  batch, (final, head) = make_batch(), inputs()
  loss = ours(settings, batch, final, head)[0]
  counts = batch.loss_weights > 0
  poisoned = lambda x: np.where(counts, x, np.nan).astype(np.float32)
  fields = ("advantages", "sampling_log_probabilities", "old_log_probabilities", "reference_log_probabilities")
  broken = with_rollout(batch, **{name: poisoned(getattr(batch.rollout, name)) for name in fields})
  other = dataclasses.replace(broken, targets=np.where(counts, batch.targets, 0).astype(np.int32))
  assert ours(settings, other, final, head)[0] == loss
  gradient = np.asarray(jax.grad(lambda x: ours(settings, other, x, head)[0])(final))
  assert not np.any(gradient[~counts]) and np.all(np.abs(gradient[counts]).max(-1) > 0)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_first_step_on_a_rollout_has_ratio_one(ratio):
  metrics = ours(GRPO(ratio=ratio, sequences_per_row=2), make_batch(old=False), *inputs())[1]
  assert metrics["ratio"] == 1.0 and metrics["clipped_high"] == metrics["clipped_low"] == 0


def test_extreme_ratios_stay_finite():
  batch = make_batch()
  counts = batch.loss_weights
  far = with_rollout(
    batch,
    old_log_probabilities=np.float32(-300 * counts),
    sampling_log_probabilities=np.float32(-600 * counts),
    reference_log_probabilities=np.float32(90 * counts),
  )
  settings = GRPO(kl_coefficient=1e-9)
  loss, gradient = jax.value_and_grad(lambda x: ours(settings, far, x, inputs()[1])[0])(inputs()[0])
  assert np.isfinite(loss) and np.all(np.isfinite(np.asarray(gradient)))


def test_without_kl_nothing_is_asked_of_a_reference():
  missing = make_batch(reference=False)
  assert np.isfinite(ours(GRPO(), missing, *inputs())[0])
  with pytest.raises(ValueError, match=r"kl_coefficient=0\.1"):
    ours(GRPO(kl_coefficient=0.1), missing, *inputs())
  with pytest.raises(ValueError, match="no rollout"):
    ours(GRPO(), dataclasses.replace(missing, rollout=None), *inputs())


@pytest.mark.parametrize(
  "options, named",
  [
    ({"ratio": "tokens"}, "ratio='tokens'"),
    ({"aggregation": "mean"}, "aggregation='mean'"),
    ({"aggregation": "constant"}, "constant_length=0"),
    ({"clip_low": 0.0}, r"clip_low=0\.0"),
    ({"dual_clip": 0.5}, r"dual_clip=0\.5"),
    ({"importance_cap": 0.5}, r"importance_cap=0\.5"),
    ({"temperature": 0.0}, r"temperature=0\.0"),
  ],
)
def test_settings_that_make_no_sense(options, named):
  with pytest.raises(ValueError, match=named):
    GRPO(**options)


# In the train step

DENSE = ModelConfig(
  vocab_size=V, num_layers=L, hidden_size=16, intermediate_size=24, num_heads=2, num_kv_heads=2, head_dim=8
)
MOE = DENSE.replace(
  num_experts=E, num_experts_per_token=K, tie_word_embeddings=False, num_heads=4, router_aux_loss_coef=0.01
)


def step_gradient(config, batch, mesh_shape, micro_batches=1, settings=None):
  mesh = make_mesh(mesh_shape, jax.devices()[: math.prod(mesh_shape.values())])
  optimizer = optax.trace(decay=0.0)
  objective = grpo(settings or GRPO(kl_coefficient=0.05, sequences_per_row=2))
  step = make_train_step(config, objective, optimizer, clip_norm=0.0, micro_batches=micro_batches)
  with jax.set_mesh(mesh):
    state = create_state(config, optimizer, mesh, seed=1)
    new, metrics = jax.jit(step)(state, jax.device_put(batch, batch_sharding(mesh)), 0.0)
  return jax.tree.map(np.asarray, new.optimizer.trace), jax.tree.map(float, metrics)


@pytest.mark.parametrize("config, aggregation", [(MOE, "token"), (DENSE, "sequence")], ids=["moe", "dense"])
def test_accumulated_and_sharded_as_one_batch(config, aggregation):
  settings = GRPO(kl_coefficient=0.05, ratio=aggregation, aggregation=aggregation, sequences_per_row=2)
  batch = make_batch(experts=config.is_moe)
  whole, metrics = step_gradient(config, batch, {"data": 1}, settings=settings)
  assert metrics["gradient_norm"] > 1e-3
  layouts = [({"data": 1}, 4)] if config.is_moe else [({"fsdp": 2, "context": 2}, 2)]
  for mesh, micro_batches in [*layouts, ({"data": 2, "fsdp": 2, "tensor": 2}, 1)]:
    parts, of_parts = step_gradient(config, batch, mesh, micro_batches, settings)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(whole))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
      np.testing.assert_allclose(a, b, atol=2e-6 * scale)
    for name in ("loss", "entropy", "kl", "ratio", "clipped_high", "log_probability_gap"):
      np.testing.assert_allclose(of_parts[name], metrics[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_routing_replay():
  """Experts that are replayed are used, with the router's weights for them and its gradient."""
  params, batch = initialize(MOE, 0), make_batch(experts=True)

  @jax.jit
  def forward(params, experts):
    found = from_parameters(MOE, params).hidden(batch.tokens, batch.positions, batch.segment_ids, experts=experts)
    return found.final, found.router.slots

  free, _ = forward(params, None)
  none = np.full((B, T, L, K), -1, np.int16)
  np.testing.assert_array_equal(forward(params, none)[0], free)
  final, slots = forward(params, batch.rollout.experts)
  assert np.abs(np.asarray(final - free)).max() > 1e-2
  # Each real token goes to the experts that it was given.
  real = batch.segment_ids > 0
  for layer in range(L):
    expected = np.bincount(batch.rollout.experts[real][:, layer].ravel(), minlength=E)
    np.testing.assert_array_equal(slots[layer], expected)

  # Where the router's own choice is replayed, nothing changes when the router no longer makes it.
  gradient = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(forward(params, batch.rollout.experts)[0]))))(params)
  assert np.abs(np.asarray(gradient["layers"]["feed_forward"]["router"])).max() > 1e-4
  with pytest.raises(ValueError, match="dense"):
    from_parameters(DENSE, initialize(DENSE, 0)).hidden(batch.tokens, experts=batch.rollout.experts)
