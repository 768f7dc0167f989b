"""A checkpoint of a mixture of experts on other meshes than the one that wrote it: exact, and the run goes on."""

import shutil

import jax
import numpy as np
import pytest
import run_helpers
from run_helpers import series

from qwen3_jax.checkpoint import Checkpointer
from qwen3_jax.config_loading import load
from qwen3_jax.data.corpora import prepare_corpora
from qwen3_jax.preemption import PreemptionNotice
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages import pretrain
from qwen3_jax.train_loop import run_stage
from qwen3_jax.workdir import Workdir

EXPERIMENT = f"{run_helpers.ROOT / 'experiments' / 'moe_235b.py'}:tiny"
BATCH, STEPS, SAVED = 16, 6, 3
OPTIONS = {
  "model__num_experts": 4,
  "stages__s1__batch_size": BATCH,
  "stages__s1__tokens": STEPS * BATCH * run_helpers.LENGTHS["s1"],
  "stages__s1__evaluate_every": 99,
  "checkpoint__every": SAVED,
}
MESHES = [
  {"fsdp": 2, "expert": 4},
  {"data": 2, "fsdp": 2, "tensor": 2},
  {"expert": 2, "context": 4},
  {"fsdp": 4},  # fewer devices
  {"fsdp": 1},
]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return run_helpers.make_material(tmp_path_factory.mktemp("material"))


def train(material, folder, mesh):
  """Stage S1 of the experiment on `mesh`, from its newest checkpoint in `folder` if it has one."""
  config = load(EXPERIMENT, material.overrides(**OPTIONS))
  tokenizer, corpora = prepare_corpora(config, folder)
  stage = pretrain.make_stage(config, "s1", corpora, tokenizer, mesh)
  run_stage(stage, config, Workdir(folder), mesh, None, 0, PreemptionNotice())


@pytest.fixture(scope="module")
def written(material, tmp_path_factory):
  """The work directory of a run on fsdp=8 that holds its steps 3 and 6."""
  folder = tmp_path_factory.mktemp("written") / "run"
  train(material, folder, make_mesh({"fsdp": 8}))
  return folder


def restored(material, folder, shape, step=STEPS):
  """(abstract, state) of a checkpoint on a mesh of that shape."""
  mesh = make_mesh(shape, jax.devices()[: int(np.prod([*shape.values()]))])
  program = pretrain.make_program(load(EXPERIMENT, material.overrides(**OPTIONS)), "s1")
  abstract = program.abstract_state(mesh)
  checkpoints = Checkpointer(Workdir(folder).checkpoints("s1"), keep=2)
  try:
    found = checkpoints.restore(abstract)
  finally:
    checkpoints.close()
  assert found is not None and found.step == step
  return abstract, found.state


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_every_array_is_exact_and_where_the_mesh_wants_it(material, written, shape):
  _, before = restored(material, written, {"fsdp": 8})
  abstract, after = restored(material, written, shape)
  moments = [leaf for leaf in jax.tree.leaves(before.optimizer) if leaf.ndim]
  assert len(moments) == 2 * len(jax.tree.leaves(before.params)) and all(np.any(leaf) for leaf in moments)
  for a, b, wanted in zip(*map(jax.tree.leaves, (before, after, abstract)), strict=True):
    assert b.sharding == wanted.sharding and b.dtype == a.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_no_device_holds_more_than_its_shard(material, written):
  _, state = restored(material, written, {"fsdp": 2, "expert": 4})
  experts = state.params["layers"]["feed_forward"]["gate"]
  assert {shard.data.size for shard in experts.addressable_shards} == {experts.size // 8}


def test_the_run_goes_on_with_the_same_losses_and_data(material, written, tmp_path):
  """Steps 4 to 6 again, from step 3, on another mesh."""
  folder = shutil.copytree(written, tmp_path / "run")
  shutil.rmtree(folder / "stages/s1/checkpoints" / str(STEPS))
  train(material, folder, make_mesh({"fsdp": 2, "expert": 4}))
  losses, data = ([series(at, "s1", name) for at in (written, folder)] for name in ("loss", "data_checksum"))
  assert data[0] == data[1] and len(set(data[0].values())) == STEPS
  for step in range(1, STEPS + 1):
    assert losses[1][step] == pytest.approx(losses[0][step], rel=1e-6)
