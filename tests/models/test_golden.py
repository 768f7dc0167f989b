"""Our model against the reference implementation's outputs, stored in tests/golden (make_golden.py made them)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_cross_entropy.api import linear_cross_entropy
from qwen3_jax.greedy import greedy_continuation
from qwen3_jax.huggingface import weights
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.moe import pooled_balance_loss
from qwen3_jax.models.rope import inverse_frequencies
from qwen3_jax.models.transformer import from_parameters

CHECKPOINTS = ("dense", "dense_tied_yarn", "moe")
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=CHECKPOINTS)
def case(request, golden):
  folder = golden / request.param
  config, params = load_parameters(folder, "float32")
  return config, params, dict(np.load(folder / "golden.npz"))


@functools.partial(jax.jit, static_argnums=0)
def hidden_of(config, params, tokens, segment_ids):
  return from_parameters(config, params).hidden(tokens, segment_ids=segment_ids, return_layers=True)


@functools.partial(jax.jit, static_argnums=0)
def output_of(config, params, tokens, segment_ids=None):
  """Logits and, of an MoE model, the balance loss of all its layers together."""
  output = from_parameters(config, params)(tokens, segment_ids=segment_ids)
  return output.logits, pooled_balance_loss(output.router) if config.is_moe else None


def inputs(expected):
  return jnp.asarray(expected["input_ids"], jnp.int32), jnp.asarray(expected["attention_mask"], jnp.int32)


def test_logits_hidden_states_and_router(case):
  config, params, expected = case
  tokens, mask = inputs(expected)
  real = np.asarray(mask, bool)
  hidden = hidden_of(config, params, tokens, mask)
  np.testing.assert_allclose(hidden.layers[:, real], expected["hidden_states"][:-1][:, real], atol=TOLERANCE, rtol=0)
  np.testing.assert_allclose(hidden.final[real], expected["hidden_states"][-1][real], atol=TOLERANCE, rtol=0)
  logits, _ = output_of(config, params, tokens, mask)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits[real], expected["logits"][real], atol=TOLERANCE, rtol=0)
  assert np.std(expected["logits"][real]) > 0.5  # zeros would not pass


def test_rope_frequencies(case):
  config, _, expected = case
  frequencies, scale = inverse_frequencies(config)
  np.testing.assert_allclose(frequencies, expected["rope_inv_freq"], rtol=2e-7)
  assert scale == pytest.approx(float(expected["rope_attention_scaling"]), rel=1e-7)


def test_loss_and_every_gradient_norm(case):
  config, params, expected = case
  tokens, mask = inputs(expected)
  targets = jnp.roll(tokens, -1, axis=1)
  weights_ = (mask * jnp.roll(mask, -1, axis=1)).at[:, -1].set(0).astype(jnp.float32)

  def loss(params):
    model = from_parameters(config, params)
    hidden = model.hidden(tokens, segment_ids=mask)
    total, _ = linear_cross_entropy(hidden.final, model.head_kernel, targets, weights_)
    balance = pooled_balance_loss(hidden.router) * config.router_aux_loss_coef if config.is_moe else 0.0
    return total / weights_.sum() + balance

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  assert float(value) == pytest.approx(float(expected["loss"]), rel=1e-6)
  ours = reference_gradients(config, gradients)
  names = [key.removeprefix("gradnorm/") for key in expected if key.startswith("gradnorm/")]
  assert set(names) == set(ours)
  for name in names:
    assert np.linalg.norm(ours[name]) == pytest.approx(float(expected[f"gradnorm/{name}"]), rel=1e-4), name
    if f"grad/{name}" in expected:
      np.testing.assert_allclose(ours[name], expected[f"grad/{name}"], rtol=1e-4, atol=1e-7)


def reference_gradients(config, gradients) -> dict[str, np.ndarray]:
  """Our gradients under the reference's names; it holds a layer's experts in two stacked matrices."""
  flat = {
    jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(gradients)
  }
  named = {}
  attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
  for layer in range(config.num_layers):
    prefix, get = f"model.layers.{layer}.", lambda path: flat[f"layers.{path}"][layer]  # noqa: B023
    for ours, theirs in attention.items():
      named[f"{prefix}self_attn.{theirs}.weight"] = get(f"attention.{ours}")
    named[f"{prefix}self_attn.q_norm.weight"] = get("attention.query_norm.scale")
    named[f"{prefix}self_attn.k_norm.weight"] = get("attention.key_norm.scale")
    named[f"{prefix}input_layernorm.weight"] = get("attention_norm.scale")
    named[f"{prefix}post_attention_layernorm.weight"] = get("feed_forward_norm.scale")
    if config.is_moe:
      named[f"{prefix}mlp.gate.weight"] = get("feed_forward.router").T
      gate, up = get("feed_forward.gate"), get("feed_forward.up")
      named[f"{prefix}mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=-1)
      named[f"{prefix}mlp.experts.down_proj"] = get("feed_forward.down")
    else:
      for name in ("gate", "up", "down"):
        named[f"{prefix}mlp.{name}_proj.weight"] = get(f"feed_forward.{name}")
  named["model.embed_tokens.weight"] = flat["embed.embedding"]
  named["model.norm.weight"] = flat["final_norm.scale"]
  if not config.tie_word_embeddings:
    named["lm_head.weight"] = flat["head.kernel"].T
  return named


def test_greedy_continuation(case):
  config, params, expected = case
  prompt, continuation = np.split(expected["greedy_ids"][0], [16])
  assert greedy_continuation(config, params, [prompt.tolist()], len(continuation)) == [continuation.tolist()]


def test_router_and_pooled_auxiliary_loss(golden):
  config, params = load_parameters(golden / "moe", "float32")
  expected = np.load(golden / "moe" / "golden.npz")
  tokens, mask = inputs(expected)
  _, masked = output_of(config, params, tokens, mask)
  logits, unmasked = output_of(config, params, tokens)
  assert float(masked) == pytest.approx(float(expected["aux_loss_masked"]), rel=1e-6)
  assert float(unmasked) == pytest.approx(float(expected["aux_loss_nomask"]), rel=1e-6)
  np.testing.assert_allclose(logits, expected["logits_nomask"], atol=TOLERANCE, rtol=0)
  # Router logits, from the hidden states that the layers hand to the router.
  reference = expected["router_logits_nomask"].reshape(config.num_layers, *tokens.shape, config.num_experts)
  np.testing.assert_allclose(router_logits(config, params, tokens), reference, atol=TOLERANCE, rtol=0)


@functools.partial(jax.jit, static_argnums=0)
def router_logits(config, params, tokens):
  """[L, B, T, E], by running every layer's attention on its recorded input."""
  from flax import nnx

  from qwen3_jax.models.context_parallel import attend as attend_to_segments
  from qwen3_jax.models.rope import rotation

  attend = lambda query, key, value: (attend_to_segments(query, key, value, jnp.ones(tokens.shape, jnp.int32)), None)
  model = from_parameters(config, params)
  hidden = model.hidden(tokens, return_layers=True)
  rope = rotation(config, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
  graph, state = nnx.split(model.layers)
  stacked = nnx.to_pure_dict(state)
  logits = []
  for index in range(config.num_layers):
    layer = nnx.merge(graph, jax.tree.map(lambda x, index=index: x[index], stacked))
    x = hidden.layers[index]
    x = x + layer.attention(layer.attention_norm(x), rope, attend)[0]
    logits.append(layer.feed_forward_norm(x) @ layer.feed_forward.router[...])
  return jnp.stack(logits)


def test_table_covers_every_parameter(case):
  config, params, _ = case
  assert sum(int(np.prod(weight.shape)) for weight in weights(config)) == config.parameter_count()
  assert sum(x.size for x in jax.tree.leaves(params)) == config.parameter_count()
