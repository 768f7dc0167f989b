"""Every ablation: its study's configs are valid and change what it is about and nothing else; some run."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from flax import nnx
from run_helpers import make_material

from experiments import miniature, miniature_distillation, miniature_fusion, miniature_reasoning
from qwen3_jax.config_checks import flatten
from qwen3_jax.config_loading import load
from qwen3_jax.huggingface import HuggingFaceSink
from qwen3_jax.loading import load_pretrained
from qwen3_jax.metrics import read_metrics
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Transformer, abstract_parameters, from_parameters, parameters
from qwen3_jax.objectives.distillation_settings import DIVERGENCES
from qwen3_jax.safetensors_io import WeightsError
from qwen3_jax.sweeps.studies import find_study
from qwen3_jax.sweeps.units import plan
from qwen3_jax.workdir import Workdir

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "ablations"
RL, FUSION = "stages.reasoning_rl.", "data.written.fusion.fusion."
STAGES = ("s1", "s2", "s3")
# Of each: the base, what any arm may change beside names, and the values of one key over the arms.
ABLATIONS = {
  "lbl_scope": (
    lambda: miniature.get_config("model=moe,post=none"),
    {f"stages.{stage}.{key}" for stage in STAGES for key in ("micro_batches", "balance_counts")},
    ("stages.s1.balance_counts", ["exact", "micro"]),
  ),
  "qk_norm": (
    lambda: miniature.get_config("post=none"),
    {"model.qk_norm", "stages.s1.optimizer.peak_lr"},
    ("model.qk_norm", [True] * 3 + [False] * 3),
  ),
  "z_loss": (
    lambda: miniature.get_config("post=none"),
    {f"stages.{stage}.z_loss" for stage in STAGES},
    ("stages.s3.z_loss", [0.0, 1e-4, 1e-3, 1e-2]),
  ),
  "schedule": (
    lambda: miniature.get_config("post=none"),
    {"pipeline", *(f"stages.s1.optimizer.{key}" for key in ("schedule", "final_lr", "decay_fraction"))},
    ("stages.s1.optimizer.schedule", ["wsd", "cosine", "constant"]),
  ),
  "cold_start_size": (
    miniature_reasoning.get_config,
    {"data.corpora.traces.source", "stages.cold_start.tokens"},
    ("stages.cold_start.tokens", None),
  ),
  "clip_higher": (
    miniature_reasoning.get_config,
    {RL + key for key in ("grpo.clip_high", "minibatches", "batch_size", "steps", "evaluate_every")},
    (RL + "grpo.clip_high", [0.2, 0.28, 0.4]),
  ),
  "kl": (
    miniature_reasoning.get_config,
    {RL + "grpo.kl_coefficient"},
    (RL + "grpo.kl_coefficient", [0.0, 0.01, 0.1]),
  ),
  "entropy_target": (
    miniature_reasoning.get_config,
    {RL + "entropy.target", RL + "entropy.gain"},
    (RL + "entropy.gain", None),
  ),
  "distillation_divergence": (
    miniature_distillation.get_config,
    {"stages.on_policy.distillation.divergence"},
    ("stages.on_policy.distillation.divergence", list(DIVERGENCES)),
  ),
  "fusion_mix": (
    miniature_fusion.get_config,
    {FUSION + "thinking_share"},
    (FUSION + "thinking_share", [0.2, 0.5, 0.8]),
  ),
}
SMALL = ModelConfig(
  vocab_size=64, num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=2, head_dim=8
)


def arms(name, form=""):
  """The config of each work unit of the ablation's study, as its command says."""
  experiment = f"{FOLDER / name}.py{form}"
  found = []
  for unit in plan(experiment, [], find_study(experiment), Path("sweep")).units:
    flags = [flag.removeprefix("--config") for flag in unit.command if flag.startswith("--config")]
    found.append(load(flags[0].removeprefix("="), [flag.removeprefix(".") for flag in flags[1:]]))
  return found


def test_no_ablation_is_forgotten():
  assert {path.stem for path in FOLDER.glob("*.py")} == {*ABLATIONS, "__init__"}


@pytest.mark.parametrize("name", ABLATIONS)
def test_arms_differ_from_the_base_in_what_the_ablation_is_about(name):
  make_base, may_change, (key, values) = ABLATIONS[name]
  base, changed = flatten(make_base()), set()
  configs = [flatten(config) for config in arms(name)]
  for config in configs:
    assert config.keys() == base.keys()
    changed |= {key for key in base if config[key] != base[key]} - {"name", "model.name", "data.cache"}
  assert changed == may_change
  assert len({str({key: config[key] for key in may_change}) for config in configs}) == len(configs)  # all different
  assert len({config["name"] for config in configs}) == len(configs) // (3 if name == "qk_norm" else 1)
  if values is not None:
    assert [config[key] for config in configs] == values


@pytest.mark.parametrize("name", ABLATIONS)
def test_tiny_form(name):
  for config in arms(name, ":tiny"):
    assert config.name.endswith("-tiny") and config.model.hidden_size <= 64
    for stage in config.stages.values():
      steps = stage.steps if "steps" in stage else stage.tokens // (stage.batch_size * stage.sequence_length)
      assert steps <= 20


def test_scope_of_the_balance_loss():
  """The two arms see the same tokens in the same micro-batches; two devices can share each."""
  exact, micro = arms("lbl_scope")
  for stage in STAGES:
    settings = exact.stages[stage], micro.stages[stage]
    assert settings[0].micro_batches == settings[1].micro_batches > 1
    assert settings[0].batch_size // settings[0].micro_batches == 2


def test_cold_start_keeps_its_epochs():
  configs = arms("cold_start_size")
  traces = [int(config.data.corpora.traces.source.split(":")[3]) for config in configs]
  tokens = [config.stages.cold_start.tokens for config in configs]
  assert traces[0] < traces[1] < traces[2] < traces[3] == 8 * traces[0]
  assert np.allclose(np.divide(tokens, traces), tokens[0] / traces[0], rtol=1e-3)


def test_clipping_can_matter():
  """Only ratios of later steps on the same rollouts leave 1; the rollouts of a batch are as many as in the base."""
  base = miniature_reasoning.get_config().stages.reasoning_rl
  for config in arms("clip_higher"):
    rl = config.stages.reasoning_rl
    assert rl.minibatches > 1 and rl.minibatches * rl.batch_size == base.minibatches * base.batch_size
    assert rl.steps // rl.minibatches == base.steps


def test_entropy_is_free_or_held():
  free, *held = arms("entropy_target")
  assert free.stages.reasoning_rl.entropy.gain == 0.0
  assert [config.stages.reasoning_rl.entropy.target for config in held] == [0.02, 0.05, 0.1]
  assert all(config.stages.reasoning_rl.entropy.gain > 0 for config in held)


def scaled(params, **factors):
  """Parameters with some of attention's matrices multiplied."""
  attention = {
    name: value * factors.get(name, 1.0)
    for name, value in params["layers"]["attention"].items()
    if name in ("query", "key", "value", "output")
  }
  return {**params, "layers": {**params["layers"], "attention": {**params["layers"]["attention"], **attention}}}


@pytest.mark.parametrize("qk_norm", [True, False])
def test_qk_norm(qk_norm):
  """With it the scale of the queries does not count; without it, only that of query times key does."""
  config = SMALL.replace(qk_norm=qk_norm, initializer_range=0.5)
  params = parameters(Transformer(config, nnx.Rngs(0)))
  tokens = jnp.arange(12)[None] % 7
  logits = lambda params: np.asarray(from_parameters(config, params)(tokens).logits)
  plain = logits(params)
  difference = lambda **factors: float(np.abs(logits(scaled(params, **factors)) - plain).max() / np.abs(plain).max())
  assert difference(query=4.0, key=0.25) < 1e-5
  assert (difference(query=4.0) < 1e-5) == qk_norm
  assert difference(value=4.0) > 1e-2


@pytest.mark.parametrize("qk_norm", [True, False])
def test_parameters_and_config_json_without_qk_norm(qk_norm, tmp_path):
  config = SMALL.replace(qk_norm=qk_norm)
  leaves = jax.tree.leaves(abstract_parameters(config))
  assert sum(leaf.size for leaf in leaves) == config.parameter_count()
  assert config.parameter_count() == SMALL.parameter_count() - (0 if qk_norm else 2 * 2 * 8)  # 2 layers, head_dim 8
  assert ModelConfig.from_hf(config.to_hf()).qk_norm == qk_norm
  if not qk_norm:
    with pytest.raises(WeightsError, match=r"model\.qk_norm=False, expected True"):
      HuggingFaceSink(tmp_path, config, {}, 1 << 20)


def test_a_run_with_micro_batch_balancing(tmp_path):
  """A real run of the tiny form, made smaller still. tests/launch/test_local_sweep.py runs both arms of `qk_norm`."""
  material = make_material(tmp_path)
  config = f"--config={FOLDER / 'lbl_scope'}.py:stage=s1,tiny,scope=micro"
  command = [
    sys.executable,
    "-m",
    "qwen3_jax.main",
    config,
    f"--workdir={tmp_path / 'run'}",
    *small_runs.overrides(material),
  ]
  ended = subprocess.run(command, cwd=ROOT, env=material.environment, capture_output=True, text=True, timeout=600)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  losses = [line["loss"] for line in read_metrics(Workdir(tmp_path / "run").metrics("s1")) if "learning_rate" in line]
  assert len(losses) == small_runs.STEPS and losses[-1] < losses[0]
  model, _ = load_pretrained(tmp_path / "run" / "stages" / "s1", dtype="float32")
  assert model.config.is_moe
