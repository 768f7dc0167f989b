"""Counts of experts against a router made by hand; specialisation against its definition; the heat map."""

import json

import jax
import numpy as np
import pytest
import run_helpers
import scipy.stats
from report_pages import check_references_and_colors, report_page, truncate

from qwen3_jax.batch import Batch
from qwen3_jax.config_loading import load
from qwen3_jax.data.corpora import prepare_corpora
from qwen3_jax.metrics import read_metrics
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import initialize
from qwen3_jax.objectives.next_token import next_token
from qwen3_jax.preemption import PreemptionNotice
from qwen3_jax.reporting.expert_choices import ExpertChoices, specialisation, write_expert_choices
from qwen3_jax.reporting.expert_maps import expert_maps
from qwen3_jax.reporting.run_record import read_run
from qwen3_jax.sharding import batch_sharding, make_mesh, parameter_shardings, replicated
from qwen3_jax.stages import pretrain
from qwen3_jax.train_loop import run_stage
from qwen3_jax.train_step import make_evaluation_step
from qwen3_jax.workdir import Workdir

D, E, V, LAYERS = 32, 8, 128, 2
MODEL = ModelConfig(
  vocab_size=V,
  num_layers=LAYERS,
  hidden_size=D,
  intermediate_size=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  num_experts=E,
  num_experts_per_token=2,
  tie_word_embeddings=False,
)


def _hand_made() -> dict:
  """Layers add nothing, so every router sees the token's own direction; layer l sends it to d + l and d + l + 1."""
  params = jax.tree.map(np.array, initialize(MODEL, 0))
  params["embed"]["embedding"][:] = np.eye(D)[np.arange(V) % D]
  params["layers"]["attention"]["output"][:] = 0
  params["layers"]["feed_forward"]["down"][:] = 0
  router = params["layers"]["feed_forward"]["router"]
  router[:] = 0
  for layer in range(LAYERS):
    for direction in range(D):
      router[layer, direction, (direction + layer) % E] = 2
      router[layer, direction, (direction + layer + 1) % E] = 1
  return params


@pytest.mark.parametrize("shape", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"expert": 4, "context": 2}], ids=str)
def test_counts_are_exact_on_any_mesh(shape):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V, (16, 24)).astype(np.int32)
  segments = (np.arange(24) < rng.integers(5, 25, (16, 1))).astype(np.int32)  # padded to the right
  positions = np.broadcast_to(np.arange(24, dtype=np.int32), tokens.shape)
  batch = Batch(tokens, tokens, segments.astype(np.float32), positions, segments)
  mesh = make_mesh(shape, jax.devices() if shape else jax.devices()[:1])
  params = jax.device_put(_hand_made(), parameter_shardings(MODEL, mesh))
  step = jax.jit(make_evaluation_step(MODEL, next_token()), out_shardings=replicated(mesh))
  with jax.set_mesh(mesh):
    output = step(params, jax.device_put(batch, batch_sharding(mesh)))
  first = tokens[segments > 0] % D
  for layer in range(LAYERS):
    chosen = np.concatenate([(first + layer) % E, (first + layer + 1) % E])
    np.testing.assert_array_equal(output.router.slots[layer], np.bincount(chosen, minlength=E))
  assert output.router.slots.is_fully_replicated


def test_specialisation_is_the_mean_divergence_from_the_mean():
  shares = np.random.default_rng(0).dirichlet(np.ones(E), (3, 5))  # [domains, layers, E]
  expected = [
    np.mean([scipy.stats.entropy(of, shares[:, layer].mean(0)) for of in shares[:, layer]]) for layer in range(5)
  ]
  np.testing.assert_allclose(specialisation(shares), expected)
  apart = np.eye(4)[:, None]  # no two domains share an expert
  np.testing.assert_allclose(specialisation(apart), np.log(4))
  np.testing.assert_allclose(specialisation(np.full((3, 1, 4), 0.25)), 0, atol=1e-12)


def test_shares_weight_domains_alike():
  choices = ExpertChoices(1, {"large": np.array([[900.0, 100.0]]), "small": np.array([[1.0, 9.0]])})
  np.testing.assert_allclose(choices.shares, [[[0.9, 0.1]], [[0.1, 0.9]]])


def test_a_run_writes_counts_at_each_evaluation(tmp_path):
  material = run_helpers.make_material(tmp_path)
  changes = {"stages__s1__evaluate_every": 5, "data__corpora__code__domain": "code"}
  config = load(f"{run_helpers.ROOT}/experiments/moe_30b_a3b.py:tiny", material.overrides(**changes))
  workdir, mesh = Workdir(tmp_path / "run"), make_mesh({"fsdp": 1}, jax.devices()[:1])
  tokenizer, corpora = prepare_corpora(config, workdir.path)
  stage = pretrain.make_stage(config, "s1", corpora, tokenizer, mesh)
  run_stage(stage, config, workdir, mesh, None, 0, PreemptionNotice())
  content = json.loads((workdir.stage("s1") / "experts.json").read_text())
  assert content["step"] == stage.steps and list(content["counts"]) == list(stage.validation)
  for domain, batches in stage.validation.items():
    counts = np.array(content["counts"][domain])
    tokens = sum(int((np.asarray(batch.segment_ids) > 0).sum()) for batch in batches)
    chosen = config.model.num_experts_per_token * tokens
    assert counts.shape == (config.model.num_layers, config.model.num_experts)
    np.testing.assert_array_equal(counts.sum(axis=1), chosen)
  lines = read_metrics(workdir.metrics("s1"))
  logged = {
    line["step"]: value for line in lines if (value := line.get("validation/expert_specialisation")) is not None
  }
  assert set(logged) == {5, stage.steps}
  every = np.stack([np.array(counts) for counts in content["counts"].values()])
  assert logged[stage.steps] == pytest.approx(specialisation(every / every.sum(-1, keepdims=True)).mean())


def _two_domains(run: Workdir) -> None:
  code, prose = np.full((6, E), 100.0), np.full((6, E), 100.0)
  code[4, :2] += [300, -100]  # 400, 0 of 1000
  write_expert_choices(run.stage("s1"), 9, {"code": code})
  write_expert_choices(run.stage("s2"), 20, {"code": code, "<prose>": prose})


def test_heat_map(run):
  _two_domains(run)
  page = report_page(run)
  check_references_and_colors(page, run)
  maps = [table for table in page.tables if table[0][0].startswith("layer ")]
  assert len(maps) == 4 and [table[0][1:] for table in maps] == [[str(expert) for expert in range(E)]] * 4
  special = next(table for table in maps if table[0][0].startswith("layer 4"))
  assert special[1] == ["code", "40", "0", *["10"] * 6]
  assert special[2] == ["<prose>", *["12"] * 8]
  depths = [attributes["style"] for tag, attributes in page.elements if "--depth" in attributes.get("style", "")]
  assert "--depth: 1.0" in depths and "--depth: 0.0" in depths and len(depths) == 4 * 2 * E
  shares = np.stack([np.array([0.4, 0, *[0.1] * 6]), np.full(E, 0.125)])
  expected = np.mean([scipy.stats.entropy(of, shares.mean(0)) for of in shares])
  assert special[0][0] == f"layer 4 · {expected:.3f} nats"
  table = page.table("Stage", "Step")
  assert table["Stage"] == ["s2"] and table["Specialisation, nats"] == [f"{expected / 6:.4f}"]
  assert table["Highest of a layer"] == [f"{expected:.4f} (layer 4)"]
  assert table["Most there can be"] == [f"{np.log(2):.3f}"]
  assert table["Of chance, at most"] == [f"{7 / 1600:.4f}"]


@pytest.mark.parametrize(
  "damage",
  [
    truncate,
    lambda path: path.write_text("[]"),
    lambda path: path.write_text('{"step": 1, "counts": {}}'),
    lambda path: path.write_text('{"step": 1, "counts": {"a": [[1, 2]], "b": [[1, 2, 3]]}}'),
    lambda path: path.write_text('{"step": 1, "counts": {"a": [[-1, 2]]}}'),
    lambda path: path.write_text('{"step": 1, "counts": {"a": [["x", NaN]]}}'),
    lambda path: path.write_text('{"step": 1, "counts": {"a": 3}}'),
  ],
)
def test_damaged_counts_are_named(run, damage):
  _two_domains(run)
  damage(run.stage("s2") / "experts.json")
  record = read_run(run)
  maps = expert_maps(record, run)
  assert record.notices == ["s2/experts.json is damaged"]
  assert maps is not None and maps.title == "after s1"  # the others are shown
