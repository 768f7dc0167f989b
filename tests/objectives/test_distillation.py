"""The objectives of distillation against float64, through the train step, sharded and accumulated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qwen3_jax.batch import Batch, Rollout, Teachers, TopPredictions
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import from_parameters, initialize
from qwen3_jax.objectives.distillation import distillation, next_token_with_teacher
from qwen3_jax.objectives.distillation_settings import Distillation
from qwen3_jax.sharding import batch_sharding, make_mesh
from qwen3_jax.train_state import create_state
from qwen3_jax.train_step import make_train_step

B, T, V, VOCABULARY = 8, 16, 64, 60
TEMPERATURE = 1.3
SIZES = {"vocab_size": V, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "unroll_layers": True}
STUDENT = ModelConfig(name="student", hidden_size=16, intermediate_size=32, tie_word_embeddings=True, **SIZES)
MOE = STUDENT.replace(name="moe", tie_word_embeddings=False, num_experts=4, num_experts_per_token=2)
WIDTHS = (16, 9)  # of the teachers: that of the student, and one that fsdp does not divide


@functools.cache
def parameters():
  return initialize(STUDENT.replace(initializer_range=0.3), 0)


def model_of(params=None):
  return from_parameters(STUDENT, parameters() if params is None else params)


@functools.cache
def heads():
  rng = np.random.default_rng(3)
  return tuple(rng.normal(size=(width, V)).astype(np.float32) / 2 for width in WIDTHS)


@functools.cache
def make_batch() -> Batch:
  rng = np.random.default_rng(0)
  segments = np.repeat([[1] * 12 + [0] * 4], B, axis=0).astype(np.int32)
  positions = np.repeat([[*range(12), 0, 0, 0, 0]], B, axis=0).astype(np.int32)
  weights = (segments > 0) * rng.choice([0.0, 1.0], (B, T), p=[0.3, 0.7])
  choice = np.repeat(np.arange(B)[:, None] % 2, T, axis=1).astype(np.int32)
  hidden = tuple(rng.normal(size=(B, T, width)).astype(np.float32) for width in WIDTHS)
  tokens = lambda: rng.integers(0, VOCABULARY, (B, T)).astype(np.int32)
  ids = np.argsort(rng.normal(size=(B, T, V)), axis=-1)[..., :3].astype(np.int32)
  ids[0, :6] = -1
  top = TopPredictions(ids, np.log(rng.dirichlet([1] * 4, (B, T))[..., :3]).astype(np.float32))
  return Batch(tokens(), tokens(), weights.astype(np.float32), positions, segments, None, top, Teachers(choice, hidden))


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def student_logits():
  batch = make_batch()
  return np.asarray(model_of()(batch.tokens, batch.positions, batch.segment_ids).logits, np.float64)


def outputs(objective):
  """Of (batch, *constants): the objective's output and the gradient of its loss, of the student."""

  def loss(params, batch, *constants):
    output = objective(model_of(params), batch, None, *constants)
    return output.loss_sum, output

  program = jax.jit(jax.grad(loss, has_aux=True))

  def run(batch, *constants):
    gradients, output = program(parameters(), batch, *constants)
    return output, gradients

  return run


@functools.cache
def on_policy(kind):
  return outputs(distillation(Distillation(kind, 0.4, TEMPERATURE), VOCABULARY))


@functools.cache
def stored(weight):
  return outputs(next_token_with_teacher(0.0, weight))


def test_loss_and_metrics_of_two_teachers():
  batch = make_batch()
  output, _ = on_policy("reverse")(batch, heads())
  logits = student_logits()
  of = lambda logits: log_softmax(logits[..., :VOCABULARY] / TEMPERATURE)
  ours = of(logits)
  both = [of(hidden @ head) for hidden, head in zip(batch.teachers.hidden, heads())]
  theirs = np.where(batch.teachers.choice[..., None] == 0, *both)
  wanted = (batch.loss_weights * (np.exp(ours) * (ours - theirs)).sum(-1)).sum()
  assert float(output.loss_sum) == pytest.approx(wanted, rel=1e-5) and wanted > 10
  assert float(output.weight) == batch.loss_weights.sum()
  entropy = (batch.loss_weights * -(np.exp(ours) * ours).sum(-1)).sum()
  assert float(output.metrics["entropy"]) == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_what_does_not_count_may_hold_anything(kind):
  """Prompts, inserted tokens and padding: neither the teacher's states there nor its choice matter, were they NaN."""
  batch = make_batch()
  output, gradients = on_policy(kind)(batch, heads())
  ignored = (batch.loss_weights == 0)[..., None]
  hidden = tuple(np.where(ignored, np.nan, x) for x in batch.teachers.hidden)
  choice = np.where(ignored[..., 0], 7, batch.teachers.choice)
  other, others = on_policy(kind)(dataclasses.replace(batch, teachers=Teachers(choice, hidden)), heads())
  assert float(output.loss_sum) == float(other.loss_sum) > 1
  jax.tree.map(np.testing.assert_array_equal, gradients, others)


def test_stored_predictions_that_do_not_count_may_be_anything():
  batch = make_batch()
  ignored = (batch.loss_weights == 0)[..., None]
  top = TopPredictions(batch.top.ids, np.where(ignored, np.nan, batch.top.log_probabilities))
  both = [stored(0.7)(x) for x in (batch, dataclasses.replace(batch, top=top))]
  assert float(both[0][0].metrics["divergence"]) > 1
  jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_a_student_that_is_its_teacher_learns_nothing(kind):
  batch = make_batch()
  hidden = model_of().hidden(batch.tokens, batch.positions, batch.segment_ids)
  teachers = Teachers(np.zeros((B, T), np.int32), (np.asarray(hidden.final), batch.teachers.hidden[1]))
  own = (np.asarray(hidden.head), heads()[1])
  output, gradients = on_policy(kind)(dataclasses.replace(batch, teachers=teachers), own)
  assert abs(float(output.loss_sum)) < 1e-4
  assert float(optax.global_norm(gradients)) < 1e-4


def test_teachers_and_heads_must_fit():
  with pytest.raises(ValueError, match="hidden states of 2 teachers and 1 heads"):
    distillation(Distillation(), VOCABULARY)(model_of(), make_batch(), None, heads()[:1])


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_stored_predictions(weight):
  batch = make_batch()
  output, _ = stored(weight)(batch)
  ours = log_softmax(student_logits())
  weights, ids = batch.loss_weights, batch.top.ids
  entropy = -(weights * np.take_along_axis(ours, batch.targets[..., None], -1)[..., 0]).sum()
  known = (ids >= 0).all(-1)
  p = np.exp(batch.top.log_probabilities.astype(np.float64))
  q = np.exp(np.take_along_axis(ours, np.maximum(ids, 0), -1))
  tails = 1 - p.sum(-1), 1 - q.sum(-1)
  divergence = (p * np.log(p / q)).sum(-1) + tails[0] * np.log(tails[0] / tails[1])
  divergence = (weights * known * divergence).sum()
  assert float(output.metrics["cross_entropy"]) == pytest.approx(entropy, rel=1e-5)
  assert float(output.metrics["divergence"]) == pytest.approx(divergence, rel=1e-5) and divergence > 10
  assert float(output.loss_sum) == pytest.approx(entropy + weight * divergence, rel=1e-5)
  assert float(output.metrics["teacher_tail"]) == pytest.approx((weights * known * tails[0]).sum(), rel=1e-5)
  with pytest.raises(ValueError, match="no stored predictions"):
    next_token_with_teacher(0.0, weight)(model_of(), dataclasses.replace(batch, top=None), None)


def step_gradient(objective, batch, mesh_shape, micro_batches, constants):
  """The gradient as the optimizer sees it, and the metrics."""
  optimizer = optax.trace(decay=0.0)
  step = make_train_step(STUDENT, objective, optimizer, clip_norm=0.0, micro_batches=micro_batches)
  size = int(np.prod(list(mesh_shape.values())))
  mesh = make_mesh(mesh_shape, jax.devices()[:size])
  with jax.set_mesh(mesh):
    state = create_state(STUDENT.replace(initializer_range=0.3), optimizer, mesh, seed=1)
    new, metrics = jax.jit(step)(state, jax.device_put(batch, batch_sharding(mesh)), 0.0, *constants)
  return jax.tree.map(np.asarray, new.optimizer.trace), jax.tree.map(float, metrics)


@pytest.mark.parametrize("name", ["on_policy", "stored"])
def test_accumulated_and_sharded_as_one_batch(name):
  objective = distillation(Distillation("jsd"), VOCABULARY)
  constants = (tuple(map(jnp.asarray, heads())),)
  if name == "stored":
    objective, constants = next_token_with_teacher(0.01, 0.5), ()
  batch = make_batch()
  whole, metrics = step_gradient(objective, batch, {"data": 1}, 1, constants)
  assert metrics["gradient_norm"] > 1e-2
  parts, of_parts = step_gradient(objective, batch, {"fsdp": 2, "tensor": 2}, 4, constants)
  scale = max(np.abs(x).max() for x in jax.tree.leaves(whole))
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
    np.testing.assert_allclose(a, b, atol=3e-6 * scale)
  for metric in ("loss", "entropy" if name == "on_policy" else "divergence"):
    np.testing.assert_allclose(of_parts[metric], metrics[metric], rtol=1e-5, err_msg=metric)


def test_experts_of_the_rollout_are_replayed():
  """Each real token goes where the rollout sent it, and the balance loss gets to know of it."""
  batch = make_batch()
  experts = np.argsort(np.random.default_rng(4).normal(size=(B, T, 1, 4)), axis=-1)[..., :2].astype(np.int16)
  rollout = Rollout(*[np.zeros((B, T), np.float32)] * 4, experts=experts)
  objective = distillation(Distillation(), VOCABULARY)
  model = lambda params: from_parameters(MOE, params)
  run = jax.jit(lambda params, batch: objective(model(params), batch, None, heads()).router.slots)
  slots = run(initialize(MOE, 0), dataclasses.replace(batch, rollout=rollout))
  np.testing.assert_array_equal(slots[0], np.bincount(experts[batch.segment_ids > 0].ravel(), minlength=4))


def test_settings_are_checked():
  with pytest.raises(ValueError, match=r"divergence='revers', .*did you mean 'reverse'.*; mix=0.*; temperature=0"):
    Distillation("revers", 0, 0)
