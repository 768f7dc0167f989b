"""The model on its own terms: initialisation, RoPE base, packing, remat, dtype, sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_cross_entropy.api import linear_cross_entropy
from qwen3_jax.models.config import MODELS, ModelConfig, model_config
from qwen3_jax.models.transformer import abstract_parameters, from_parameters, initialize, logical_axes

SMALL = ModelConfig(
  vocab_size=128, num_layers=3, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=2, head_dim=8
)
SMALL_MOE = SMALL.replace(num_experts=8, num_experts_per_token=2, tie_word_embeddings=False)


@pytest.fixture(scope="module", params=[SMALL, SMALL_MOE], ids=["dense", "moe"])
def model(request):
  # Large weights, so that differences show.
  params = jax.tree.map(lambda x: x * 6.0 if x.ndim > 2 else x, initialize(request.param, 0))
  return request.param, params


def tokens(B=2, T=24, V=128, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, T)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, *arguments):
  return from_parameters(config, params)(*arguments).logits


COUNTS = {
  "qwen3-0.6b": (596_049_920, None),
  "qwen3-1.7b": (1_720_574_976, None),
  "qwen3-4b": (4_022_468_096, None),
  "qwen3-8b": (8_190_735_360, None),
  "qwen3-14b": (14_768_307_200, None),
  "qwen3-32b": (32_762_123_264, None),
  "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704),
  "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520),
}


def test_all_sizes_are_counted():
  assert set(COUNTS) == set(MODELS)


@pytest.mark.parametrize("name", COUNTS)
def test_exact_parameter_counts(name):
  config = model_config(name)
  parameters, active = COUNTS[name]
  assert config.parameter_count() == parameters
  assert config.active_parameter_count() == (active or parameters)
  shapes = abstract_parameters(config)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters
  axes = logical_axes(config)
  jax.tree.map(lambda x, names: None if len(names) == x.ndim else pytest.fail(str(names)), shapes, axes)


@pytest.mark.parametrize(
  ("hidden", "tied", "experts"), [(64, True, 0), (256, False, 8), (1024, True, 0), (4096, False, 0)]
)
def test_initial_loss_is_that_of_a_uniform_guess(hidden, tied, experts):
  V = 8192
  config = ModelConfig(
    vocab_size=V,
    num_layers=2,
    hidden_size=hidden,
    intermediate_size=hidden // 4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    tie_word_embeddings=tied,
    num_experts=experts,
    num_experts_per_token=2,
  )
  ids = tokens(2, 65, V)

  @jax.jit
  def loss():
    model = from_parameters(config, initialize(config, 0))
    hidden = model.hidden(ids[:, :-1]).final
    return linear_cross_entropy(hidden, model.head_kernel, ids[:, 1:], jnp.ones((2, 64), jnp.float32))[0]

  assert float(loss()) / 128 == pytest.approx(np.log(V), rel=0.02)


def test_rope_base_changes_the_logits(model):
  config, params = model
  ids = tokens()
  low, high = (logits_of(config.replace(rope_theta=base), params, ids) for base in (1e4, 1e6))
  assert float(jnp.max(jnp.abs(low - high))) > 1e-3
  np.testing.assert_allclose(low[:, 0], high[:, 0], atol=1e-6)  # position 0 does not rotate


def test_only_relative_positions_matter(model):
  config, params = model
  ids = tokens()
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  logits, moved, apart = (logits_of(config, params, ids, p) for p in (positions, positions + 100, positions * 2))
  np.testing.assert_allclose(moved, logits, atol=2e-4)
  assert float(jnp.max(jnp.abs(apart - logits))) > 1e-3


def test_packed_documents_equal_documents_alone(model):
  config, params = model
  lengths = (9, 1, 8)
  ids = tokens(1, 24)
  segments = jnp.asarray([[1] * 9 + [2] + [3] * 8 + [0] * 6], jnp.int32)
  positions = jnp.asarray([[*range(9), 0, *range(8), *range(6)]], jnp.int32)
  packed = logits_of(config, params, ids, positions, segments)
  start = 0
  for length in lengths:
    alone = logits_of(config, params, ids[:, start : start + length])
    np.testing.assert_allclose(packed[:, start : start + length], alone, atol=2e-5)
    start += length


def test_causal(model):
  config, params = model
  ids = tokens()
  changed = ids.at[:, 12].set((ids[:, 12] + 1) % 128)
  before, after = (logits_of(config, params, x) for x in (ids, changed))
  np.testing.assert_allclose(before[:, :12], after[:, :12], atol=1e-6)
  assert float(jnp.min(jnp.max(jnp.abs(before[:, 12:] - after[:, 12:]), axis=-1))) > 1e-5


@pytest.mark.parametrize("change", [{"remat": r} for r in ("dots", "attention", "full")] + [{"unroll_layers": True}])
def test_remat_and_unrolling_change_nothing(model, change):
  config, params = model

  def gradients(config):
    loss = lambda params: jnp.sum(jnp.sin(from_parameters(config, params)(tokens()).logits))
    return jax.jit(jax.grad(loss))(params)

  def close(a, b):
    assert float(jnp.linalg.norm(a - b)) <= 2e-5 * float(jnp.linalg.norm(a))

  jax.tree.map(close, gradients(config), gradients(config.replace(**change)))


def test_bfloat16_keeps_float32_logits_near(model):
  config, params = model
  exact = logits_of(config, params, tokens())
  rounded = logits_of(config.replace(dtype="bfloat16"), params, tokens())
  assert rounded.dtype == jnp.float32
  error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
  assert 1e-4 < float(error) < (0.3 if config.is_moe else 0.05)  # rounding may change which expert is chosen


def test_wrong_arguments_are_named():
  with pytest.raises(ValueError, match=r"tokens must be \[B, T\]"):
    from_parameters(SMALL, initialize(SMALL, 0))(jnp.zeros(3, jnp.int32))
  with pytest.raises(ValueError, match=r"Did you mean 'qwen3-0.6b'"):
    model_config("qwen3-0.6B ")
  with pytest.raises(ValueError, match="num_heads=3 must be a multiple of num_kv_heads=2; head_dim=7 must be even"):
    SMALL.replace(num_heads=3, head_dim=7)


@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_config_round_trip(name):
  config = model_config(name)
  back = ModelConfig.from_hf(config.to_hf())
  assert back.replace(name=name, yarn_original_length=config.yarn_original_length) == config


def test_old_and_new_spelling_of_hugging_face_configs():
  moe = model_config("qwen3-30b-a3b").to_hf()
  old = {key: value for key, value in moe.items() if key not in ("rope_parameters", "num_local_experts")}
  new = {key: value for key, value in moe.items() if key not in ("rope_theta", "rope_scaling", "num_experts")}
  assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new) == ModelConfig.from_hf(moe)
  silent = {key: value for key, value in old.items() if key not in ("norm_topk_prob", "rope_theta", "head_dim")}
  config = ModelConfig.from_hf(silent)
  assert config.norm_topk_prob is False  # the reference's default
  assert config.rope_theta == 10_000.0
  assert config.head_dim == 2048 // 32
  yarn = {**old, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}
  assert ModelConfig.from_hf(yarn).yarn_factor == 4.0
  for broken, message in (
    ({**old, "model_type": "llama"}, "model_type='llama'"),
    ({**old, "attention_bias": True}, "attention_bias"),
    ({**old, "mlp_only_layers": [0]}, "mlp_only_layers"),
    ({**old, "rope_scaling": {"type": "dynamic"}}, "rope_type='dynamic'"),
    ({key: value for key, value in old.items() if key != "hidden_size"}, "missing hidden_size"),
  ):
    with pytest.raises(ValueError, match=message):
      ModelConfig.from_hf(broken)
