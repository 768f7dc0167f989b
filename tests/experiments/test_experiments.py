"""Every experiment instantiates in every form, and describes the models and the recipe of the Qwen3 report."""

import math
from pathlib import Path

import pytest

from experiments.recipes import predicted_lr_and_batch
from qwen3_jax.config import make_model_config, teacher_mesh, teacher_model
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import load
from qwen3_jax.models.config import ModelConfig

FOLDER = Path(__file__).parents[2] / "experiments"
SIZES = {  # exact parameters, active ones, chips of the pod that the experiment's comment names
  "dense_0_6b": (596_049_920, 596_049_920, 64),
  "dense_1_7b": (1_720_574_976, 1_720_574_976, 128),
  "dense_4b": (4_022_468_096, 4_022_468_096, 128),
  "dense_8b": (8_190_735_360, 8_190_735_360, 256),
  "dense_14b": (14_768_307_200, 14_768_307_200, 256),
  "dense_32b": (32_762_123_264, 32_762_123_264, 512),
  "moe_30b_a3b": (30_532_122_624, 3_353_032_704, 256),
  "moe_235b": (235_093_634_560, 22_190_763_520, 256),
}
ALL = [*SIZES, "miniature"]
DISTILLED = {  # the size, and its parameters
  "distill_0_6b": "dense_0_6b",
  "distill_1_7b": "dense_1_7b",
  "distill_4b": "dense_4b",
  "distill_8b": "dense_8b",
  "distill_14b": "dense_14b",
  "distill_30b_a3b": "moe_30b_a3b",
}
MINIATURES = ("miniature", "miniature_reasoning", "miniature_fusion", "miniature_distillation")


def experiment(name: str, arg: str = "", overrides=(), **checks):
  return load(f"{FOLDER / name}.py:{arg}", overrides, **checks)


def steps(stage) -> int:
  return stage.tokens // (stage.batch_size * stage.sequence_length)


def test_no_experiment_is_forgotten():
  shared = {"__init__", "recipes", "post_training", "tiny"}
  assert {path.stem for path in FOLDER.glob("*.py")} == {*SIZES, *DISTILLED, *MINIATURES, *shared}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name):
  parameters, active, _ = SIZES[name]
  model = make_model_config(experiment(name).model)
  assert model.parameter_count() == parameters
  assert model.active_parameter_count() == active


@pytest.mark.parametrize("form", ["", "tiny"])
@pytest.mark.parametrize("stage", ["", "s1", "s2", "s3"])
@pytest.mark.parametrize("name", ALL)
def test_every_stage_and_form_instantiates(name, stage, form):
  arg = ",".join(filter(None, [stage and f"stage={stage}", form]))
  devices = 1 if form else SIZES[name][2] if name in SIZES else 2
  config = experiment(name, arg, device_count=devices)
  assert config.pipeline[:3] == ("s1", "s2", "s3") and config.stage == stage
  for name in config.pipeline:
    make_model_config(config.model, rope_theta=config.stages[name].rope_theta)


@pytest.mark.parametrize("name", SIZES)
def test_stages_follow_the_report(name):
  config = experiment(name, device_count=SIZES[name][2])
  s1, s2, s3 = config.stages.s1, config.stages.s2, config.stages.s3
  assert [stage.sequence_length for stage in (s1, s2, s3)] == [4096, 4096, 32_768]
  assert [stage.rope_theta for stage in (s1, s2, s3)] == [1e4, 1e4, 1e6]
  assert (s1.tokens, s2.tokens) == (30 * 10**12, 5 * 10**12)
  assert 10**11 <= s3.tokens < 10**12
  assert s3.length_buckets == ((16_384, 32_768, 0.75), (4_096, 16_384, 0.25))
  assert s1.batch_size * s1.sequence_length == s3.batch_size * s3.sequence_length
  # The learning rate has no jump at a stage boundary: each stage begins where the one before it ended.
  assert s1.optimizer.final_lr == s2.optimizer.peak_lr
  assert s2.optimizer.final_lr == s3.optimizer.peak_lr
  assert s2.optimizer.decay_fraction == 1.0 and s1.optimizer.decay_fraction == 0.0
  for stage in (s1, s2, s3):
    assert math.isclose(sum(stage.mixture.values()), 1.0)
  for domain in ("stem", "code", "reasoning", "synthetic"):  # S2 raises these
    assert s2.mixture[domain] > s1.mixture[domain]
  # In a micro-batch every chip has the same tokens: whole sequences of 4,096, or a part of one of 32,768.
  assert s3.batch_size // s3.micro_batches * s3.mesh.context == SIZES[name][2]
  assert s1.micro_batches == s3.micro_batches and s3.mesh.context > 1


@pytest.mark.parametrize("name", SIZES)
def test_batch_and_lr_are_those_the_law_predicts(name):
  config = experiment(name)
  s1 = config.stages.s1
  lr, tokens = predicted_lr_and_batch(make_model_config(config.model), s1.tokens)
  assert math.isclose(s1.optimizer.peak_lr, lr, rel_tol=0.03)
  assert s1.batch_size == 2 ** round(math.log2(tokens / s1.sequence_length))


@pytest.mark.parametrize(
  "layers, hidden, feed_forward, kv_heads, lr, batch",
  [(30, 4096, 11_008, 32, 4.2e-4, 2304), (95, 8192, 22_016, 8, 3.2e-4, 4608)],
)
def test_law_gives_its_authors_own_settings(layers, hidden, feed_forward, kv_heads, lr, batch):
  """DeepSeek LLM 7B and 67B at 2T tokens of 4,096 (Bi et al. 2024, table 2)."""
  model = ModelConfig(
    vocab_size=102_400,
    num_layers=layers,
    hidden_size=hidden,
    intermediate_size=feed_forward,
    num_heads=hidden // 128,
    num_kv_heads=kv_heads,
    tie_word_embeddings=False,
  )
  predicted_lr, predicted_tokens = predicted_lr_and_batch(model, 2e12)
  assert math.isclose(predicted_lr, lr, rel_tol=0.02)
  assert math.isclose(predicted_tokens / 4096, batch, rel_tol=0.08)


@pytest.mark.parametrize("name", ALL)
def test_tiny_is_the_same_recipe_and_small(name):
  pretraining = "post=none" if name == "miniature" else ""
  full, tiny = experiment(name, pretraining), experiment(name, f"tiny,{pretraining}".rstrip(","))
  model = make_model_config(tiny.model)
  assert model.parameter_count() < 500_000
  assert model.is_moe == make_model_config(full.model).is_moe
  assert model.tie_word_embeddings == full.model.tie_word_embeddings
  assert model.remat == full.model.remat
  assert tiny.tokenizer.path == "" and tiny.tokenizer.train_vocab_size <= model.vocab_size
  assert list(tiny.stages) == list(full.stages)
  lengths = {}
  for stage_name, stage in tiny.stages.items():
    original = full.stages[stage_name]
    lengths[stage_name] = original.sequence_length / stage.sequence_length
    assert steps(stage) <= 20 and stage.tokens <= 100_000
    assert stage.batch_size <= original.batch_size and stage.sequence_length <= original.sequence_length
    assert stage.mixture == original.mixture and stage.rope_theta == original.rope_theta
    assert stage.optimizer.schedule == original.optimizer.schedule
    assert (stage.optimizer.warmup_steps > 0) == (original.optimizer.warmup_steps > 0)
    assert len(stage.length_buckets) == len(original.length_buckets)
    ratio = stage.optimizer.final_lr / stage.optimizer.peak_lr
    assert math.isclose(ratio, original.optimizer.final_lr / original.optimizer.peak_lr)
  assert len(set(lengths.values())) == 1  # one ratio for all
  for settings in tiny.data.corpora.values():
    assert settings.source == "python:" and 0 < settings.limit_megabytes <= 1


def test_tiny_scales_length_buckets():
  assert experiment("moe_235b", "tiny").stages.s3.length_buckets == ((256, 512, 0.75), (64, 256, 0.25))


def test_tiny_can_be_overridden():
  config = experiment("dense_8b", "tiny", ["model.num_layers=3", "stages.s1.tokens=1e5"])
  assert config.model.num_layers == 3 and config.stages.s1.tokens == 100_000


def test_where_the_data_is():
  config = experiment("dense_0_6b", "corpora=gs://bucket/tokens,tokenizer=/data/qwen")
  assert config.data.corpora.web.source == "prepared:gs://bucket/tokens/web"
  assert config.tokenizer.path == "/data/qwen"


def test_unknown_stage_and_argument():
  with pytest.raises(ConfigError, match=r"stage='s4': not in the pipeline"):
    experiment("dense_0_6b", "stage=s4")
  with pytest.raises(ConfigError, match=r"Did you mean 'moe'"):
    experiment("miniature", "model=mo")
  with pytest.raises(ConfigError, match=r"Known: stage, tiny, model"):
    experiment("miniature", "corpora=x")


def test_miniature_is_the_whole_pre_training_in_small():
  for name in ("dense", "moe"):
    config = experiment("miniature", f"model={name}", device_count=2)
    assert make_model_config(config.model).is_moe == (name == "moe")
    assert 500_000 < make_model_config(config.model).parameter_count() < 5_000_000
    s1, s2, s3 = config.stages.s1, config.stages.s2, config.stages.s3
    assert s3.sequence_length > s1.sequence_length == s2.sequence_length
    assert (s1.rope_theta, s3.rope_theta) == (1e4, 1e6)
    assert s3.length_buckets[0][2] == 0.75


@pytest.mark.parametrize("form", ["", "tiny"])
@pytest.mark.parametrize("name", SIZES)
def test_reasoning_follows_the_report(name, form):
  config = experiment(name, f"post=rl,{form}".rstrip(","), device_count=1 if form else SIZES[name][2])
  assert config.pipeline == ("s1", "s2", "s3", "cold_start", "reasoning_rl")
  sft, rl = config.stages.cold_start, config.stages.reasoning_rl
  assert (sft.kind, rl.kind) == ("sft", "rl") and sft.sequence_length == rl.sequence_length
  assert rl.minibatches > 1 and rl.entropy.gain > 0  # off-policy; entropy is held
  assert rl.batch_size * rl.minibatches % rl.samples == 0
  source = config.data.corpora.cold_start.source
  if form:
    assert source.startswith("traces:") and rl.problems.startswith("cups:") and rl.steps <= 20
  else:
    assert rl.steps == 170 * rl.minibatches and source == "chat:corpora/cold_start.jsonl"
    assert rl.batch_size // rl.micro_batches * rl.mesh.context == SIZES[name][2]
    assert rl.rollout.max_new_tokens < rl.sequence_length == 32_768


@pytest.mark.parametrize("form", ["", "tiny"])
@pytest.mark.parametrize("task", ["cups", "mixed_cups", "chain_sum", "letter_counting"])
def test_miniature_reasoning(task, form):
  config = experiment("miniature_reasoning", f"task={task},{form}".rstrip(","), device_count=1 if form else 2)
  family = not task.endswith("cups")
  assert config.pipeline == ("worked",) * family + ("cold_start", "reasoning_rl")
  rl = config.stages.reasoning_rl
  name = task.removeprefix("mixed_")
  sources = [corpus.source.split(":", 2)[2] for corpus in config.data.corpora.values()]
  problems = [*sources, rl.problems, rl.validation_problems]
  assert len(sources) == 1 + family and len(set(problems)) == len(problems) and all(name in of for of in problems)
  assert make_model_config(config.model).parameter_count() < 600_000
  # Of at most 15 minutes with GRPO: 11 of two cores at 12,000 tokens a second, what they reach undisturbed.
  taught = [config.stages[name] for name in config.pipeline[:-1]]
  assert all(steps(stage) <= 20 for stage in taught) if form else sum(s.tokens for s in taught) <= 11 * 60 * 12_000


@pytest.mark.parametrize("form", ["", "teacher_size=32b", "tiny"])
@pytest.mark.parametrize("name", DISTILLED)
def test_distillation_follows_the_report(name, form):
  parameters, active, devices = SIZES[DISTILLED[name]]
  config = experiment(name, form, device_count=1 if form == "tiny" else devices)
  assert config.pipeline == ("s1", "s2", "s3", "distill_off_policy", "distill_on_policy")
  off, on = config.stages.distill_off_policy, config.stages.distill_on_policy
  assert (off.kind, on.kind) == ("sft", "distill") and off.sequence_length == on.sequence_length
  assert on.rollout.modes.think == on.rollout.modes.no_think == 0.5  # "in either /think or /no_think mode"
  (teacher,) = on.teachers
  if form == "tiny":
    assert on.teachers[teacher].path == "stage:s1" and on.steps <= 20 and on.problems.startswith("cups:")
    return
  model = make_model_config(config.model)
  assert (model.parameter_count(), model.active_parameter_count()) == (parameters, active)
  large = teacher_model(config, "distill_on_policy", teacher)
  assert large.parameter_count() == SIZES["dense_32b" if form else "moe_235b"][0]
  assert large.vocab_size == model.vocab_size and large.dtype == "bfloat16"
  sizes = teacher_mesh(config, "distill_on_policy", teacher)
  assert sizes["expert"] == (1 if form else 16) and sizes["context"] == on.mesh.context


@pytest.mark.parametrize("form", ["", "tiny"])
@pytest.mark.parametrize("method", ["distill", "rl"])
def test_miniature_distillation(method, form):
  config = experiment("miniature_distillation", f"method={method},{form}".rstrip(","), device_count=1 if form else 2)
  student = make_model_config(config.model)
  if not form:
    teacher = make_model_config(experiment("miniature_reasoning", "size=large", device_count=2).model)
    assert 2.5 < teacher.parameter_count() / student.parameter_count() < 4
  assert config.stages.on_policy.kind == method and config.stages.off_policy.kind == "sft"


@pytest.mark.parametrize("form", ["", "tiny"])
def test_miniature_fusion(form):
  config = experiment("miniature_fusion", form, device_count=1 if form else 2)
  assert config.pipeline == ("cold_start", "reasoning_rl", "fusion")
  assert config.data.written.fusion.stage == "reasoning_rl" and config.data.corpora.fusion.source == "written:fusion"
  assert config.data.written.fusion.problems != config.stages.reasoning_rl.problems
  assert config.stages.fusion.rollout.modes.think == config.stages.fusion.rollout.modes.no_think == 0.5
