"""Checkpoints of real train states: any flipped bit, failures that are not damage, other meshes, donated buffers."""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from qwen3_jax import checkpoint
from qwen3_jax.checkpoint import Checkpointer, CheckpointError, restore_parameters
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.sharding import make_mesh
from qwen3_jax.train_state import abstract_state

ROOT = Path(__file__).parents[1]
MODEL = ModelConfig(
  vocab_size=128, num_layers=2, hidden_size=32, intermediate_size=48, num_heads=4, num_kv_heads=2, head_dim=8
)
OPTIMIZER = optax.chain(optax.scale_by_adam(mu_dtype=jnp.bfloat16), optax.add_decayed_weights(0.1))
MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}]


def abstract(mesh_shape):
  mesh = make_mesh(mesh_shape, jax.devices()[: int(np.prod(list(mesh_shape.values())))])
  return abstract_state(MODEL, OPTIMIZER, mesh)


def random_state(mesh_shape, seed, payloads=False):
  """Any bits that the types can hold: NaNs with payloads, infinities, negative zeros, all of uint32.

  NaNs of bfloat16 have theirs only with `payloads`: the programs of tests lose them (fast_compiling.py).
  """
  rng = np.random.default_rng(seed)

  def leaf(x):
    bits = np.frombuffer(rng.bytes(x.size * x.dtype.itemsize), x.dtype).reshape(x.shape)
    if x.dtype == jnp.bfloat16 and not payloads:
      with np.errstate(invalid="ignore"):
        bits = np.where(np.isnan(bits), x.dtype.type(np.nan), bits)
    return jax.device_put(bits, x.sharding)

  return jax.tree.map(leaf, abstract(mesh_shape))


def bits(tree):
  return {jax.tree_util.keystr(p): np.asarray(x).tobytes() for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def save(folder, *steps, mesh_shape=MESHES[2], payloads=False):
  checkpoints = Checkpointer(folder, keep=5)
  for step in steps:
    checkpoints.save(
      step, random_state(mesh_shape, step, payloads), data_state={"position": step, "rows": {10: 1, 9: 2}}
    )
  checkpoints.wait()
  checkpoints.close()


def restore(folder, mesh_shape=MESHES[2]):
  checkpoints = Checkpointer(folder, keep=5)
  try:
    return checkpoints.restore(abstract(mesh_shape))
  finally:
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Steps 1 and 2; copy before changing anything."""
  folder = tmp_path_factory.mktemp("saved") / "checkpoints"
  save(folder, 1, 2)
  return folder


@pytest.mark.parametrize("mesh_shape", [*MESHES, {"data": 1}])
def test_any_bits_onto_any_mesh(saved, mesh_shape):
  restored = restore(saved, mesh_shape)
  assert bits(restored.state) == bits(random_state(MESHES[2], 2))
  assert jax.tree.map(lambda x: x.sharding, restored.state) == jax.tree.map(lambda x: x.sharding, abstract(mesh_shape))
  assert restored.data_state == {"position": 2, "rows": {"10": 1, "9": 2}}  # JSON has only strings as keys
  parameters = restore_parameters(saved, abstract(mesh_shape).params)
  assert bits(parameters) == bits(random_state(MESHES[2], 2).params)


def test_payloads_of_nans_in_a_process_as_users_start_it(tmp_path):
  program = """
import pathlib, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from tests.test_checkpoint_faults import MESHES, bits, random_state, restore, save
folder = pathlib.Path(sys.argv[1])
save(folder, 1, payloads=True)
for mesh_shape in MESHES:
  assert bits(restore(folder, mesh_shape).state) == bits(random_state(MESHES[2], 1, payloads=True)), mesh_shape
"""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", program, str(tmp_path / "checkpoints")]
  ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
  assert ended.returncode == 0, ended.stderr


def test_one_flipped_bit_anywhere_never_changes_what_is_restored(saved, tmp_path):
  """Where a bit matters the step before is restored, and where it does not, this step: bit for bit either way."""
  generator = random.Random(0)
  wanted = {step: bits(random_state(MESHES[2], step)) for step in (1, 2)}
  files = sorted(path.relative_to(saved) for path in (saved / "2").rglob("*") if path.is_file())
  found = []
  for number, name in enumerate(files):
    folder = shutil.copytree(saved, tmp_path / str(number))
    data = bytearray((folder / name).read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    (folder / name).write_bytes(data)
    restored = restore(folder)
    assert restored.data_state["position"] == restored.step, name
    assert bits(restored.state) == wanted[restored.step], name
    assert (folder / "damaged-2").exists() == (restored.step == 1), name
    found.append(restored.step)
  assert 1 in found and 2 in found  # some files only say when the checkpoint was written


@pytest.mark.parametrize("name", [".", "parameters", "training", "data", "record"])
def test_empty_folders(saved, tmp_path, name):
  folder = shutil.copytree(saved, tmp_path / "checkpoints")
  shutil.rmtree(folder / "2" / name)
  (folder / "2" / name).mkdir()
  assert restore(folder).step == 1
  assert sorted(path.name for path in folder.iterdir()) == ["1", "damaged-2"]


def test_damaged_twice_at_the_same_step(saved, tmp_path):
  folder = shutil.copytree(saved, tmp_path / "checkpoints")
  for _ in range(2):
    shutil.rmtree(folder / "2" / "record")
    assert restore(folder).step == 1
    save(folder, 2)
  assert restore(folder).step == 2
  assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "damaged-2"]


NOT_DAMAGE = [
  MemoryError(),
  PermissionError(13, "Permission denied"),
  OSError(24, "Too many open files"),
  ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1099511627776 bytes."),
  ValueError('PERMISSION_DENIED: Error reading "d/1" in OCDBT database'),
]


@pytest.mark.parametrize("error", NOT_DAMAGE, ids=lambda error: f"{type(error).__name__} {error}"[:30])
@pytest.mark.parametrize("wrapped", [False, True])
def test_failures_that_may_pass_are_not_damage(saved, tmp_path, monkeypatch, error, wrapped):
  folder = shutil.copytree(saved, tmp_path / "checkpoints")

  def fail(*_, **__):
    if wrapped:
      raise RuntimeError("Encountered error while reading") from error
    raise error

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
  with pytest.raises(CheckpointError, match=r"/2 could not be read, which does not mean that it is damaged: "):
    restore(folder)
  with pytest.raises(CheckpointError, match=r"/2 could not be read"):
    restore_parameters(folder, abstract(MESHES[0]).params)
  monkeypatch.undo()
  assert restore(folder).step == 2


def test_an_interrupt_is_not_damage(saved, tmp_path, monkeypatch):
  folder = shutil.copytree(saved, tmp_path / "checkpoints")

  def interrupt(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", interrupt)
  with pytest.raises(KeyboardInterrupt):
    restore(folder)
  monkeypatch.undo()
  assert restore(folder).step == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(saved, tmp_path):
  folder = shutil.copytree(saved, tmp_path / "checkpoints")
  (folder / "2" / "parameters" / "_METADATA").chmod(0)
  with pytest.raises(CheckpointError, match="Permission denied"):
    restore(folder)


def test_a_record_is_trusted_only_whole(saved, tmp_path):
  """A digit of a shape that flipped is damage, not another model, for the parameters alone too."""
  folder = shutil.copytree(saved, tmp_path / "checkpoints")
  path = folder / "2" / "record" / "metadata"
  text = path.read_text()
  assert "[128, 32]" in text
  path.write_text(text.replace("[128, 32]", "[129, 32]", 1))
  assert bits(restore_parameters(folder, abstract(MESHES[1]).params)) == bits(random_state(MESHES[2], 1).params)
  assert restore(folder).step == 1


def test_parameters_are_all_that_restore_parameters_reads(saved, tmp_path):
  folder = shutil.copytree(saved, tmp_path / "checkpoints")
  for item in ("training", "data"):
    for path in (folder / "2" / item).rglob("*"):
      if path.is_file():
        path.write_bytes(b"garbage")
  assert bits(restore_parameters(folder, abstract(MESHES[1]).params)) == bits(random_state(MESHES[2], 2).params)
  assert (folder / "2").exists()


def test_another_optimizer_is_not_damage(saved, tmp_path):
  folder = shutil.copytree(saved, tmp_path / "checkpoints")
  state = abstract(MESHES[0])
  checkpoints = Checkpointer(folder, keep=5)
  with pytest.raises(CheckpointError, match=r"optimizer/0/mu.*saved \['bfloat16'.*expected nothing"):
    checkpoints.restore(dataclasses.replace(state, optimizer=optax.EmptyState()))
  checkpoints.close()
  assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("mesh_shape", [{"data": 1}, MESHES[2]])
def test_buffers_overwritten_during_the_save(tmp_path, mesh_shape):
  """The next step overwrites the very buffers that were given to `save`."""

  def pointers(tree):
    return [shard.data.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) for shard in x.addressable_shards]

  overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 + 1, tree), donate_argnums=0)
  state = random_state(mesh_shape, 3)
  wanted, before = bits(state), pointers(state)
  checkpoints = Checkpointer(tmp_path, keep=1)
  checkpoints.save(3, state, data_state={})
  overwritten = jax.block_until_ready(overwrite(state))
  checkpoints.wait()
  assert len(set(before) & set(pointers(overwritten))) > len(before) // 2  # they really were reused
  restored = checkpoints.restore(abstract(mesh_shape))
  checkpoints.close()
  assert bits(restored.state) == wanted


def test_folder_removed_under_a_run(tmp_path):
  folder, threads = tmp_path / "checkpoints", set(threading.enumerate())
  checkpoints = Checkpointer(folder, keep=2)
  checkpoints.save(1, random_state(MESHES[0], 1), data_state={})
  checkpoints.wait()
  shutil.rmtree(folder)
  folder.write_text("a file in its place")
  with pytest.raises(CheckpointError, match=r"checkpoint 2 was not saved, the last good one is step 1 \("):
    checkpoints.save(2, random_state(MESHES[0], 2), data_state={})
    checkpoints.wait()
  checkpoints.close()
  for _ in range(50):  # a thread that waits for what never comes would keep the process from exiting
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread not in threads]
    if not left:
      break
    time.sleep(0.1)
  assert not left


def test_checksum_is_of_what_json_gives_back():
  value = {"b": (1, 2), 10: 0.1, 9: None}
  assert checkpoint._checksum(value) == checkpoint._checksum({"9": None, "10": 0.1, "b": [1, 2]})
