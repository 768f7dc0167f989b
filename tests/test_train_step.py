"""The train step: accumulation, meshes, the balance loss, skipped steps, AdamW, compile count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qwen3_jax.batch import Batch
from qwen3_jax.config import pretrain_stage
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.moe import balance_loss
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.objectives.next_token import next_token
from qwen3_jax.optimizer import make_optimizer, make_schedule
from qwen3_jax.sharding import batch_sharding, make_mesh
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.train_state import create_state, initial_state
from qwen3_jax.train_step import make_train_step

DENSE = ModelConfig(
  vocab_size=128, num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=2, head_dim=8
)
# A large coefficient, so that the balance loss shows in every gradient.
MOE = DENSE.replace(num_experts=8, num_experts_per_token=2, tie_word_embeddings=False, router_aux_loss_coef=0.5)
MODELS = pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])


def make_batch(B=16, T=24, V=128, seed=0) -> Batch:
  """Packed rows with uneven weights: some rows have few targets, so means of means would be wrong."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  segments = np.ones((B, T), np.int32)
  segments[:, 15:] = 2
  segments[: B // 2, 7:] = 0
  weights = (segments > 0).astype(np.float32)
  weights[:, 14] = 0.0
  positions = np.tile(np.concatenate([np.arange(15), np.arange(T - 15)]).astype(np.int32), (B, 1))
  return Batch(tokens, np.roll(tokens, -1, 1), weights, positions, segments)


def gradient_of_step(config, mesh_shape, micro_batches, **settings):
  """(gradients, metrics) of the real train step; momentum without decay keeps the gradient in the optimizer's state."""
  mesh = make_mesh(mesh_shape, jax.devices()[: int(np.prod(list(mesh_shape.values())))])
  optimizer = optax.trace(decay=0.0)
  step = make_train_step(config, next_token(1e-3), optimizer, clip_norm=0.0, micro_batches=micro_batches, **settings)
  with jax.set_mesh(mesh):
    state = create_state(config, optimizer, mesh, seed=1)
    new, metrics = jax.jit(step)(state, jax.device_put(make_batch(), batch_sharding(mesh)), 0.0)
  return jax.tree.map(np.asarray, new.optimizer.trace), jax.tree.map(float, metrics)


def direct_gradient(config):
  """The definition: one loss over the whole batch on one device."""
  batch = make_batch()
  params = create_state(config, optax.identity(), make_mesh({}, jax.devices()[:1]), seed=1).params

  def loss(params):
    output = next_token(1e-3)(from_parameters(config, params), batch, jax.random.PRNGKey(0))
    balance = 0.0
    if config.is_moe:
      router = output.router
      balance = config.router_aux_loss_coef * balance_loss(router, router.slots, router.tokens)
    return output.loss_sum / output.weight + balance

  return jax.jit(jax.grad(loss))(params)


ONE_DEVICE = ({"data": 1}, 1)
LAYOUTS = [
  (DENSE, ({"data": 1}, 4)),
  (DENSE, ({"fsdp": 8}, 1)),
  (DENSE, ({"tensor": 4, "context": 2}, 2)),
  (MOE, ({"data": 2, "fsdp": 2, "tensor": 2}, 1)),
  (MOE, ({"fsdp": 2, "expert": 2}, 4)),
  (MOE, ({"expert": 4, "context": 2}, 1)),
]


@functools.cache
def reference(config):
  """The definition's gradient, and the metrics of a step on one device, whose gradient is the same."""
  expected = direct_gradient(config)
  gradients, metrics = gradient_of_step(config, *ONE_DEVICE)
  assert_same(gradients, expected)
  return expected, metrics


def assert_same(gradients, expected) -> None:
  for ours, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    scale = np.linalg.norm(wanted)
    assert scale > 1e-4
    assert np.linalg.norm(ours - wanted) <= 1e-6 * scale, wanted.shape


@pytest.mark.parametrize(
  ("config", "layout"), LAYOUTS, ids=lambda x: str(x) if isinstance(x, tuple) else "moe" if x.is_moe else "dense"
)
def test_gradient_does_not_depend_on_devices_or_micro_batches(config, layout):
  expected, reference_metrics = reference(config)
  gradients, metrics = gradient_of_step(config, *layout)
  assert_same(gradients, expected)
  for name, value in reference_metrics.items():
    assert metrics[name] == pytest.approx(value, rel=1e-6), name


POLICIES = [
  {"remat": "dots"},
  {"remat": "attention"},
  {"remat": "full", "offload_layer_inputs": True},
  {"remat": "dots", "offload_layer_inputs": True},
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_memory_policies_do_not_change_the_gradient(policy):
  gradients, _ = gradient_of_step(MOE.replace(**policy), {"fsdp": 2, "expert": 2}, 1)
  assert_same(gradients, reference(MOE)[0])


def one_step(*, offload: bool = False, micro_batches: int = 1, **settings):
  """State and metrics after a step of TrainProgram on four devices."""
  options = stage_optimizer(**settings)
  mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
  program = TrainProgram(
    model=DENSE,
    objective=next_token(),
    optimizer=make_optimizer(options),
    batch_shape=make_batch().shape,
    micro_batches=micro_batches,
    clip_norm=1.0,
    gradient_dtype=options.gradient_dtype,
    offload_optimizer=offload,
  )
  state = program.create_state(mesh, seed=0)
  return program.lower(mesh).compile()(state, jax.device_put(make_batch(), batch_sharding(mesh)), np.float32(0.01))


def test_an_offloaded_optimizer_makes_the_same_step():
  (state, _), (offloaded, _) = one_step(), one_step(offload=True)
  kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}
  assert kinds(offloaded.optimizer) == {"pinned_host"} != kinds(state.optimizer)
  assert kinds(offloaded.params) == kinds(state.params)
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, offloaded))


def test_moments_and_gradients_in_bfloat16():
  state, metrics = one_step()
  narrow, narrow_metrics = one_step(moment_dtype="bfloat16", gradient_dtype="bfloat16", micro_batches=2)
  assert {x.dtype.name for x in jax.tree.leaves(narrow.optimizer) if x.ndim} == {"bfloat16"}
  assert {x.dtype.name for x in jax.tree.leaves(narrow.params)} == {"float32"}
  assert float(narrow_metrics["gradient_norm"]) == pytest.approx(float(metrics["gradient_norm"]), rel=0.02)
  for wide, short in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(narrow.optimizer)):
    if wide.ndim:
      difference = np.linalg.norm(np.asarray(wide) - np.asarray(short, np.float32))
      assert 0 < difference < 0.03 * np.linalg.norm(wide)


def test_micro_batch_balance_loss_would_differ():
  """The test above can fail: balancing each micro-batch by itself gives another gradient."""
  batch = make_batch()
  params = create_state(MOE, optax.identity(), make_mesh({}, jax.devices()[:1]), seed=1).params

  @jax.jit
  def router_gradient(batch):
    def loss(params):
      router = next_token()(from_parameters(MOE, params), batch, jax.random.PRNGKey(0)).router
      return balance_loss(router, router.slots, router.tokens)

    return jax.grad(loss)(params)["layers"]["feed_forward"]["router"]

  whole = router_gradient(batch)
  rows = [jax.tree.map(lambda x, i=i: x[i::4], batch) for i in range(4)]
  by_part = sum(router_gradient(part) for part in rows) / 4
  assert float(jnp.linalg.norm(by_part - whole)) > 0.05 * float(jnp.linalg.norm(whole))


@pytest.mark.parametrize("counts", ["running", "micro"])
def test_balance_counts_of_micro_batches(counts):
  """Micro-batch i is balanced with the counts of 1..i, or with its own, weighed by its share of the targets."""
  n, params = 4, create_state(MOE, optax.identity(), make_mesh({}, jax.devices()[:1]), seed=1).params
  parts = [jax.tree.map(lambda x, i=i: x[i::n], make_batch()) for i in range(n)]

  def loss(params, part, earlier_slots):
    output = next_token(1e-3)(from_parameters(MOE, params), part, jax.random.PRNGKey(0))
    slots = jax.lax.stop_gradient(output.router.slots) + earlier_slots
    balance = MOE.router_aux_loss_coef * balance_loss(output.router, slots, output.router.tokens)
    return output.loss_sum + output.weight * balance, (output.weight, slots)

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  nothing = slots = jnp.zeros((MOE.num_layers, MOE.num_experts))
  total, weight = 0.0, 0.0
  for part in parts:
    gradients, (weight_of_part, slots) = gradient(params, part, slots if counts == "running" else nothing)
    total, weight = total + gradients["layers"]["feed_forward"]["router"], weight + weight_of_part
  expected = total / weight
  gradients, _ = gradient_of_step(MOE, {}, n, balance_counts=counts)
  found, exact = (g["layers"]["feed_forward"]["router"] for g in (gradients, reference(MOE)[0]))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(expected))))
  assert np.linalg.norm(exact - found) > 0.01 * np.linalg.norm(exact)


def stage_optimizer(**changes):
  return pretrain_stage(optimizer={"peak_lr": 0.01, **changes}).optimizer


def test_adamw_against_float64():
  settings = stage_optimizer(beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.3)
  optimizer, schedule = make_optimizer(settings), make_schedule(settings, 10)
  params = {"matrix": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "norm": {"scale": jnp.asarray([1.0, 2.0])}}
  state = optimizer.init(params)
  slow = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  mean = jax.tree.map(np.zeros_like, slow)
  square = jax.tree.map(np.zeros_like, slow)
  for t in range(1, 5):
    gradients = jax.tree.map(lambda x, t=t: jnp.cos(x * t) * t, params)
    directions, state = optimizer.update(gradients, state, params)
    params = jax.tree.map(lambda p, d, t=t: p - schedule(t - 1) * d, params, directions)
    g64 = jax.tree.map(lambda x: np.asarray(x, np.float64), gradients)
    mean = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, mean, g64)
    square = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g * g, square, g64)
    adam = jax.tree.map(lambda m, v, t=t: m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3), mean, square)
    decay = {"matrix": 0.3, "norm": {"scale": 0.0}}  # scales do not decay
    slow = jax.tree.map(lambda p, d, w: p - 0.01 * (d + w * p), slow, adam, decay)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), params, slow)


def test_schedules():
  wsd = make_schedule(stage_optimizer(schedule="wsd", warmup_steps=4, final_lr=0.001, decay_fraction=0.5), 20)
  values = [float(wsd(step)) for step in range(21)]
  np.testing.assert_allclose(values[:4], [0.0025, 0.005, 0.0075, 0.01], rtol=1e-6)
  np.testing.assert_allclose(values[4:11], 0.01, rtol=1e-6)
  np.testing.assert_allclose(values[10:], np.linspace(0.01, 0.001, 11), rtol=1e-5)
  decays_at_once = make_schedule(stage_optimizer(schedule="wsd", final_lr=0.001, decay_fraction=1.0), 20)
  np.testing.assert_allclose([decays_at_once(s) for s in (0, 10, 20)], [0.01, 0.0055, 0.001], rtol=1e-5)
  cosine = make_schedule(stage_optimizer(schedule="cosine", final_lr=0.001), 20)
  np.testing.assert_allclose([cosine(s) for s in (0, 10, 20)], [0.01, 0.0055, 0.001], rtol=1e-5)
  constant = make_schedule(stage_optimizer(schedule="constant"), 20)
  assert float(constant(0)) == float(constant(19)) == pytest.approx(0.01)
  with pytest.raises(ValueError, match="schedule='step'"):
    make_schedule(stage_optimizer(schedule="step"), 20)


def one_device_step(config, **settings):
  options = stage_optimizer(**settings)
  step = make_train_step(config, next_token(), make_optimizer(options), clip_norm=options.clip_norm)
  mesh = make_mesh({}, jax.devices()[:1])
  state = create_state(config, make_optimizer(options), mesh, seed=0)
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)), state


def test_clipping_bounds_the_gradient():
  big, small = (make_train_step(DENSE, next_token(), optax.trace(decay=0.0), clip_norm=clip) for clip in (0.0, 0.05))
  params = create_state(DENSE, optax.identity(), make_mesh({}, jax.devices()[:1]), seed=0).params
  state = initial_state(params, optax.trace(decay=0.0), 0)
  free, metrics = jax.jit(big)(state, make_batch(), 0.01)
  clipped, clipped_metrics = jax.jit(small)(state, make_batch(), 0.01)
  norm = float(optax.global_norm(free.optimizer.trace))
  assert norm > 0.1
  assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
  assert float(clipped_metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)  # reported before clipping
  assert float(optax.global_norm(clipped.optimizer.trace)) == pytest.approx(0.05, rel=1e-5)


@MODELS
def test_training_reduces_the_loss_and_compiles_once(config):
  step, state = one_device_step(config)
  losses = []
  for _ in range(20):
    state, metrics = step(state, make_batch(), 0.01)
    losses.append(float(metrics["loss"]))
  assert losses[0] == pytest.approx(np.log(128), rel=0.02)
  assert losses[-1] < losses[0] - 0.5
  assert step._cache_size() == 1
  assert int(state.step) == 20


def test_non_finite_steps_change_nothing_and_are_counted():
  step, state = one_device_step(DENSE)
  state, _ = step(state, make_batch(), 0.01)
  kept = jax.tree.map(np.asarray, (state.params, state.optimizer))
  poison = make_batch()
  weights = np.array(poison.loss_weights)
  weights[0, 0] = np.nan
  for expected in (1, 2):
    state, metrics = step(state, dataclasses.replace(poison, loss_weights=weights), 0.01)
    assert int(metrics["skipped_steps"]) == expected
  jax.tree.map(np.testing.assert_array_equal, (state.params, state.optimizer), kept)
  assert int(state.step) == 3
  state, metrics = step(state, make_batch(), 0.01)
  assert int(metrics["skipped_steps"]) == 0
  assert not np.array_equal(state.params["embed"]["embedding"], kept[0]["embed"]["embedding"])
