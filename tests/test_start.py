"""A run that starts from a checkpoint: with its parameters and nothing else, and refused where they would not fit."""

import inspect
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_helpers
from run_helpers import Material, make_material, series

from qwen3_jax import start as start_module
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import load
from qwen3_jax.convert import convert
from qwen3_jax.data.corpora import prepare_corpora
from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.loading import load_pretrained
from qwen3_jax.preemption import PreemptionNotice
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages import pretrain
from qwen3_jax.start import check_start, takes_start
from qwen3_jax.train_loop import run_stage
from qwen3_jax.workdir import Workdir

EXPERIMENT = f"{run_helpers.ROOT / 'experiments' / 'dense_0_6b.py'}:tiny"
SHAPE = {
  "num_layers": 3,
  "hidden_size": 64,
  "intermediate_size": 160,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 32,
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def checkpoint(material, golden, tmp_path_factory):
  """Reference weights with our tokenizer, converted to a folder of ours."""
  folder = tmp_path_factory.mktemp("checkpoint")
  shutil.copytree(golden / "dense", folder / "hf")
  Tokenizer.from_pretrained(material.tokenizer).save(folder / "hf")
  assert convert(folder / "hf", folder / "ours") == "checkpoint"
  return folder / "ours"


def make_config(material: Material, start, **changes):
  shape = {f"model__{name}": value for name, value in SHAPE.items()}
  settings = {"start": start, "model__tie_word_embeddings": False, **shape, "stages__s1__rope_theta": 1e6}
  return load(EXPERIMENT, material.overrides(stages__s1__tokens=200, **settings | changes))


def test_it_begins_with_the_parameters(material, checkpoint, tmp_path):
  config = make_config(material, checkpoint)
  tokenizer, corpora = prepare_corpora(config, tmp_path)
  check_start(config, ["s1"], [], tokenizer, Workdir(tmp_path))
  mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
  stage = pretrain.make_stage(config, "s1", corpora, tokenizer, mesh)
  validation = stage.validation
  run_stage(stage, config, Workdir(tmp_path), mesh, None, 0, PreemptionNotice())
  losses = series(tmp_path, "s1", "validation/loss")

  model, _ = load_pretrained(checkpoint, "float32")  # beside the train loop
  of_domains = []
  for batches in validation.values():
    total = weight = 0.0
    for batch in batches:
      logits = model(jnp.asarray(batch.tokens), jnp.asarray(batch.positions), jnp.asarray(batch.segment_ids)).logits
      logits = np.asarray(logits, np.float64)
      chosen = np.take_along_axis(logits, np.asarray(batch.targets)[..., None], -1)[..., 0]
      of_tokens = np.log(np.exp(logits).sum(-1)) - chosen
      weights = np.asarray(batch.loss_weights, np.float64)
      total, weight = total + (of_tokens * weights).sum(), weight + weights.sum()
    of_domains.append(total / weight)
  np.testing.assert_allclose(losses[0], np.mean(of_domains), rtol=2e-5)
  assert losses[1] != losses[0]  # it learnt
  untrained = np.log(tokenizer.vocab_size)
  assert abs(losses[0] - untrained) > 1e-3  # the reference weights are not those that a run would draw


def test_it_is_for_the_first_stage_of_the_model(material, checkpoint):
  config = make_config(material, checkpoint)
  assert takes_start(config, "s1", None) and not takes_start(config, "s2", "s1")
  assert not takes_start(make_config(material, ""), "s1", None)
  miniature = load(f"{run_helpers.ROOT / 'experiments' / 'miniature.py'}:", [f"start={checkpoint}"])
  assert not takes_start(miniature, "student_off_policy", None)
  with pytest.raises(ConfigError, match=r"start='x': no stage of the pipeline trains config.model"):
    load(f"{run_helpers.ROOT / 'experiments' / 'miniature.py'}:", ["start=x", "pipeline=('student_off_policy',)"])


def check(config, folder, left=("s1", "s2", "s3"), done=()):
  check_start(config, left, done, Tokenizer.from_pretrained(config.tokenizer.path), Workdir(folder))


def test_what_does_not_fit_is_refused(material, checkpoint, tmp_path):
  with pytest.raises(DataError, match="nowhere: no such folder"):
    check(make_config(material, tmp_path / "nowhere"), tmp_path)
  with pytest.raises(DataError, match="hidden_size=64 instead of 32"):
    check(make_config(material, checkpoint, model__hidden_size=32), tmp_path)
  with pytest.raises(DataError, match="num_layers=3 instead of 2, tie_word_embeddings=False instead of True"):
    check(make_config(material, checkpoint, model__num_layers=2, model__tie_word_embeddings=True), tmp_path)

  (tmp_path / "other").mkdir()
  train_sentencepiece([inspect.getsource(inspect)], tmp_path / "other" / "tokenizer.model", 400)
  with pytest.raises(DataError, match=r"its tokenizer, 512 ids, is not the run's, 400 ids"):
    check(make_config(material, checkpoint, tokenizer__path=tmp_path / "other"), tmp_path)

  damaged = tmp_path / "damaged"
  shutil.copytree(checkpoint, damaged)
  (damaged / "parameters" / "_METADATA").write_text("{")
  with pytest.raises(DataError, match="corrupt"):
    check(make_config(material, damaged), tmp_path)


def test_it_is_not_missed_once_the_run_has_begun(material, tmp_path):
  """A run goes on after its start was deleted."""
  config = make_config(material, tmp_path / "deleted")
  with pytest.raises(DataError, match="deleted: no such folder"):
    check(config, tmp_path)
  check(config, tmp_path, left=("s2", "s3"), done=("s1",))
  (Workdir(tmp_path).checkpoints("s1") / "3").mkdir(parents=True)
  check(config, tmp_path)


def test_another_rope_base_is_no_error_but_said(material, checkpoint, tmp_path, monkeypatch):
  """The change from S2 to S3 is one."""
  said = []
  monkeypatch.setattr(start_module.logging, "warning", lambda text, *values: said.append(text % values))
  check(make_config(material, checkpoint), tmp_path)
  assert said == []
  check(make_config(material, checkpoint, stages__s1__rope_theta=1e4), tmp_path)
  assert len(said) == 1 and "has rope_theta=1e+06, stage 's1' begins with 10000" in said[0]


def test_a_run_says_it_before_it_begins(material, tmp_path):
  ended = material.run("dense_0_6b", tmp_path / "run", start=tmp_path / "nowhere")
  assert "nowhere: no such folder" in ended.error
  assert not (tmp_path / "run" / "stages" / "s1" / "checkpoints").exists()
  assert json.loads((tmp_path / "run" / "config.json").read_text())["start"] == str(tmp_path / "nowhere")
