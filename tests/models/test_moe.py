"""Mixture of experts: dispatches agree, the balance loss is the paper's, no token is dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.models.moe import RouterStatistics, balance_loss, dense_dispatch, grouped_dispatch


def arguments(skew: bool, seed=0, B=3, T=10, D=16, F=12, E=6, k=2):
  keys = jax.random.split(jax.random.key(seed), 6)
  x = jax.random.normal(keys[0], (B, T, D))
  logits = jax.random.normal(keys[1], (B, T, E)) + (jnp.asarray([9.0, 9.0, 0, 0, 0, 0]) if skew else 0)
  weights, experts = jax.lax.top_k(jax.nn.softmax(logits), k)
  matrices = [jax.random.normal(key, shape) * 0.3 for key, shape in zip(keys[2:], [(E, D, F), (E, D, F), (E, F, D)])]
  return x, weights, experts, *matrices


@pytest.mark.parametrize("skew", [False, True], ids=["spread", "all tokens on two of six experts"])
def test_grouped_dispatch_equals_every_expert_on_every_token(skew):
  x, weights, experts, *matrices = arguments(skew)
  if skew:
    assert len(np.unique(experts)) == 2  # four experts get no token, and none of the tokens is dropped
  expected = jax.jit(dense_dispatch)(x, weights, experts, *matrices)
  assert float(jnp.std(expected)) > 0.1
  np.testing.assert_allclose(jax.jit(grouped_dispatch)(x, weights, experts, *matrices), expected, atol=2e-6)

  def gradients(dispatch):
    loss = lambda x, weights, *matrices: jnp.sum(jnp.sin(dispatch(x, weights, experts, *matrices)))
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(x, weights, *matrices)

  for ours, reference in zip(gradients(grouped_dispatch), gradients(dense_dispatch)):
    assert float(jnp.linalg.norm(reference)) > 0.1
    np.testing.assert_allclose(ours, reference, atol=1e-5)


def statistics(slots, probability, tokens):
  f32 = lambda x: jnp.asarray(x, jnp.float32)
  return RouterStatistics(f32(slots), f32(probability), f32(tokens))


def test_balance_loss_is_one_a_layer_when_balanced_and_grows_with_imbalance():
  balanced = statistics([[4, 4, 4, 4]] * 2, [[2, 2, 2, 2]] * 2, [8, 8])
  assert float(balance_loss(balanced, balanced.slots, balanced.tokens)) == pytest.approx(2.0)
  collapsed = statistics([[16, 0, 0, 0]], [[8, 0, 0, 0]], [8])
  assert float(balance_loss(collapsed, collapsed.slots, collapsed.tokens)) == pytest.approx(4.0)


def test_balance_loss_counts_the_global_batch_not_each_part():
  # Two sequences that each use half of the experts are balanced together: no penalty, so experts may specialise.
  first, second = statistics([[8, 8, 0, 0]], [[4, 4, 0, 0]], [8]), statistics([[0, 0, 8, 8]], [[0, 0, 4, 4]], [8])
  both = jax.tree.map(jnp.add, first, second)
  parts = [balance_loss(part, both.slots, both.tokens) for part in (first, second)]
  assert float(sum(parts)) == pytest.approx(1.0)
  alone = [balance_loss(part, part.slots, part.tokens) for part in (first, second)]
  assert float(np.mean(alone)) == pytest.approx(2.0)


def test_balance_loss_gradient_flows_through_the_probabilities_only():
  slots, tokens = jnp.asarray([[6.0, 2.0, 0.0, 8.0]]), jnp.asarray([8.0])

  def loss(slots, probability):
    return balance_loss(RouterStatistics(slots, probability, tokens), slots, tokens)

  probability = jnp.asarray([[3.0, 1.0, 1.0, 3.0]])
  by_slots, by_probability = jax.grad(loss, argnums=(0, 1))(slots, probability)
  assert not np.any(by_slots)
  np.testing.assert_allclose(by_probability, 4 * slots / 16 / 8, rtol=1e-6)  # E * f_e / tokens
