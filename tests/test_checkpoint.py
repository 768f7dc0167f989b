"""Checkpoints: bit-exact on any mesh, across kills, past damage, and with a disk that fills up."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import checkpoint_run as run
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from qwen3_jax.checkpoint import Checkpointer, CheckpointError, restore_parameters
from qwen3_jax.fingerprint import fingerprints

TESTS = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def warnings(monkeypatch):
  """What was logged as a warning."""
  lines = []
  monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
  return lines


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder with checkpoints of steps 1 and 2; copy it before damaging it."""
  folder = tmp_path_factory.mktemp("saved") / "checkpoints"
  save(folder, 1, 2)
  return folder


def save(folder, *steps, keep=2):
  checkpoints = Checkpointer(folder, keep=keep)
  mesh = run.mesh_of(8)
  for step in steps:
    checkpoints.save(step, run.state_at(step, mesh), data_state={"position": step}, metrics={"loss": step / 3})
  checkpoints.wait()
  checkpoints.close()


def restore(folder, mesh=None, rows=512):
  checkpoints = Checkpointer(folder, keep=2)
  try:
    return checkpoints.restore(run.abstract(mesh or run.mesh_of(8), rows))
  finally:
    checkpoints.close()


def assert_same(found, wanted):
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(wanted)]
  for path, a, b in zip(paths, jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype, path
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)


def data_files(folder, item, change):
  """Changes all files with arrays of an item: tensorstore may have left single ones that nothing refers to."""
  files = list((folder / item).glob("**/d/*"))
  assert files
  for path in files:
    change(path)


class TestRestore:
  def test_nothing_saved(self, tmp_path):
    assert restore(tmp_path / "checkpoints") is None

  @pytest.mark.parametrize("shape", [(1,), (8,), (2, 4)])
  def test_onto_any_mesh(self, saved, shape):
    mesh = run.mesh_of(*shape)
    restored = restore(saved, mesh)
    assert (restored.step, restored.data_state, restored.metrics) == (2, {"position": 2}, {"loss": 2 / 3})
    assert_same(restored.state, run.state_at(2, run.mesh_of(8)))
    wanted = jax.tree.map(lambda x: x.sharding, run.abstract(mesh))
    assert jax.tree.map(lambda x: x.sharding, restored.state) == wanted

  def test_donating_the_state_during_a_save_does_not_change_what_is_saved(self, tmp_path):
    mesh = run.mesh_of(8)
    checkpoints = Checkpointer(tmp_path, keep=9)
    state = run.state_at(0, mesh)
    for step in range(1, 5):
      state = run.train(state)
      checkpoints.save(step, state, data_state={})
      state = run.train(state)
    checkpoints.wait()
    restored = checkpoints.restore(run.abstract(mesh))
    checkpoints.close()
    assert_same(restored.state, run.state_at(7, mesh))

  def test_typed_random_key(self, tmp_path):
    mesh = run.mesh_of(1)
    checkpoints = Checkpointer(tmp_path, keep=1)
    key = jax.random.key(3)
    checkpoints.save(1, dataclasses.replace(run.state_at(0, mesh), rng=key), data_state={})
    struct = jax.ShapeDtypeStruct((), key.dtype, sharding=run.abstract(mesh).step.sharding)
    restored = checkpoints.restore(dataclasses.replace(run.abstract(mesh), rng=struct))
    checkpoints.close()
    assert restored.state.rng.dtype == key.dtype
    assert jax.random.bits(restored.state.rng) == jax.random.bits(key)

  def test_parameters_alone_do_not_need_the_rest(self, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.rmtree(folder / "2" / "training")
    parameters = restore_parameters(folder, run.abstract(run.mesh_of(4)).params)
    assert_same(parameters, run.state_at(2, run.mesh_of(8)).params)

  def test_parameters_fall_back_too(self, saved, tmp_path, warnings):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    data_files(folder / "2", "parameters", flip)
    assert_same(restore_parameters(folder, run.abstract(run.mesh_of(4)).params), run.state_at(1, run.mesh_of(8)).params)
    assert len(warnings) == 1 and f"{folder / '2'} is damaged" in warnings[0]
    shutil.rmtree(folder / "1")
    with pytest.raises(CheckpointError, match="holds no intact checkpoint"):
      restore_parameters(folder, run.abstract(run.mesh_of(4)).params)

  def test_another_model_is_an_error_that_names_what_differs(self, saved):
    with pytest.raises(CheckpointError) as error:
      restore(saved, rows=1024)
    message = str(error.value)
    assert "params/embed/embedding: saved ['float32', [512, 64]], expected ['float32', [1024, 64]]" in message
    assert "scale" not in message and "\n" not in message
    with pytest.raises(CheckpointError, match=r"params/embed/embedding: saved"):
      restore_parameters(saved, run.abstract(run.mesh_of(8), 1024).params)

  def test_newest_are_kept(self, tmp_path):
    save(tmp_path, 1, 2, 3, 5, keep=2)
    checkpoints = Checkpointer(tmp_path, keep=2)
    assert checkpoints.all_steps() == [3, 5] and checkpoints.latest_step() == 5
    checkpoints.close()

  def test_metrics_that_are_not_finite(self, tmp_path):
    checkpoints = Checkpointer(tmp_path, keep=1)
    checkpoints.save(1, run.state_at(1, run.mesh_of(1)), data_state={}, metrics={"loss": float("nan")})
    assert checkpoints.restore(run.abstract(run.mesh_of(1))).metrics == {"loss": "NaN"}
    checkpoints.close()


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def flip(path):
  """One bit in every 97 bytes."""
  data = bytearray(path.read_bytes())
  for place in range(0, len(data), 97):
    data[place] ^= 4
  path.write_bytes(data)


def replace_tree(folder, other):
  """Whole and readable, but not what was saved: only the fingerprints can tell."""
  shutil.rmtree(folder)
  shutil.copytree(other, folder)


def change_digit(path):
  text = path.read_text()
  assert "2" in text
  path.write_text(text.replace("2", "3", 1))


DAMAGE = {
  "parameters truncated": lambda folder: data_files(folder, "parameters", truncate),
  "parameters flipped": lambda folder: data_files(folder, "parameters", flip),
  "parameters missing": lambda folder: data_files(folder, "parameters", os.remove),
  "training flipped": lambda folder: data_files(folder, "training", flip),
  "parameters of another step": lambda folder: replace_tree(folder / "parameters", folder.parent / "1" / "parameters"),
  "training of another step": lambda folder: replace_tree(folder / "training", folder.parent / "1" / "training"),
  "training folder missing": lambda folder: shutil.rmtree(folder / "training"),
  "training manifest empty": lambda folder: os.truncate(folder / "training" / "manifest.ocdbt", 0),
  "metadata missing": lambda folder: (folder / "training" / "_METADATA").unlink(),
  "checkpoint metadata missing": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
  "record missing": lambda folder: shutil.rmtree(folder / "record"),
  "record truncated": lambda folder: truncate(folder / "record" / "metadata"),
  "record changed": lambda folder: change_digit(folder / "record" / "metadata"),
  "data changed": lambda folder: change_digit(folder / "data" / "metadata"),
  "data empty": lambda folder: os.truncate(folder / "data" / "metadata", 0),
  "all files empty": lambda folder: [os.truncate(path, 0) for path in folder.rglob("*") if path.is_file()],
}


class TestDamage:
  @pytest.mark.parametrize("kind", DAMAGE)
  def test_falls_back_to_the_one_before(self, saved, tmp_path, kind, warnings):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    DAMAGE[kind](folder / "2")
    restored = restore(folder)
    if kind == "checkpoint metadata missing" and restored.step == 2:  # only says when it was written
      assert_same(restored.state, run.state_at(2, run.mesh_of(8)))
      return
    assert (restored.step, restored.data_state) == (1, {"position": 1})
    assert_same(restored.state, run.state_at(1, run.mesh_of(8)))
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert warnings[0].startswith(f"checkpoint {folder / '2'} is damaged: ")
    assert warnings[0].endswith("; it is now damaged-2, using step 1")
    assert (folder / "damaged-2").is_dir()
    save(folder, 2)  # the run comes to this step again
    assert restore(folder).step == 2

  def test_all_damaged_is_an_error_and_leaves_them_alone(self, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    data_files(folder / "1", "training", truncate)
    data_files(folder / "2", "parameters", flip)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read \(step 2: .*; step 1: .*\); remove"):
      restore(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


class TestFingerprint:
  def test_every_single_change_is_seen(self):
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    seen = {fingerprints(jnp.asarray(x))[0]}
    for index in np.ndindex(x.shape):
      for bit in (0, 31):
        changed = x.view(np.uint32).copy()
        changed[index] ^= np.uint32(1 << bit)
        seen.add(fingerprints(jnp.asarray(changed.view(np.float32)))[0])
    assert len(seen) == 1 + 2 * x.size

  def test_order_counts_and_sharding_does_not(self):
    x = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
    assert len({fingerprints(y)[0] for y in (x, x.T, x[::-1], jnp.roll(x, 1, axis=1))}) == 4
    sharding = jax.sharding.NamedSharding(run.mesh_of(2, 4), jax.sharding.PartitionSpec("b", "a"))
    assert fingerprints(jax.device_put(x, sharding)) == fingerprints(x)

  @pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float16", "int32"])
  def test_dtypes(self, dtype):
    x = jnp.arange(6).astype(dtype)
    assert fingerprints([x, x]) == 2 * fingerprints(x) != 2 * fingerprints(x[::-1])


def test_killed_at_random_moments(tmp_path):
  """A run that is killed while it saves all the time: what it then restores is bit for bit what it had saved."""
  rows, seed = 8192, random.SystemRandom().randrange(10**6)
  print("seed", seed)
  delays, reached = random.Random(seed), 0
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
  for _ in range(5):
    command = [sys.executable, str(TESTS / "checkpoint_run.py"), str(tmp_path), str(rows)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    for _ in range(3):
      line = process.stdout.readline()  # at its third step the second is on disk
      assert line, "the run ended by itself"
    time.sleep(delays.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    printed = [int(line), *map(int, process.stdout.read().split())]
    process.wait()
    restored = restore(tmp_path, run.mesh_of(8), rows)
    assert max(printed) - 1 <= restored.step <= max(printed) + 1 and restored.step > reached
    assert restored.data_state == {"position": 10 * restored.step}
    assert_same(restored.state, run.state_at(restored.step, run.mesh_of(8), rows))
    assert not list(tmp_path.glob("*tmp*"))
    reached = restored.step


FILL = """
  import resource, signal, sys
  import checkpoint_run as run
  from qwen3_jax.checkpoint import Checkpointer, CheckpointError

  folder, limited = sys.argv[1], sys.argv[2] == "limited"
  mesh = run.mesh_of(1)
  checkpoints = Checkpointer(folder, keep=1)
  checkpoints.save(1, run.state_at(1, mesh, 4096), data_state={})
  checkpoints.wait()
  if limited:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
  else:
    ballast = open(folder + "/ballast", "wb", buffering=0)
    try:
      while True:
        ballast.write(bytes(10_000))
    except OSError:
      pass
  try:
    checkpoints.save(2, run.state_at(2, mesh, 4096), data_state={})
    checkpoints.save(3, run.state_at(3, mesh, 4096), data_state={})
    print("saved?!")
  except CheckpointError as error:
    print(error)
  if limited:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
  else:
    import os
    ballast.close()
    os.remove(folder + "/ballast")
  checkpoints.close()
  checkpoints = Checkpointer(folder, keep=1)
  print(checkpoints.restore(run.abstract(mesh, 4096)).step)
  checkpoints.save(4, run.state_at(4, mesh, 4096), data_state={})
  checkpoints.wait()
  print(checkpoints.restore(run.abstract(mesh, 4096)).step, checkpoints.all_steps())
  checkpoints.close()
"""


@pytest.mark.parametrize("kind", ["limited", "full"])
def test_full_disk(tmp_path, kind):
  """Real failing writes: a limit on the size of files, and where mounting is allowed a file system that is full."""
  folder = tmp_path / "checkpoints"
  folder.mkdir()
  if kind == "full":
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
      pytest.skip("mounting a small file system needs root")
  try:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-c", textwrap.dedent(FILL), str(folder), kind]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  finally:
    if kind == "full":
      subprocess.run(["umount", str(folder)], check=True)
  lines = result.stdout.splitlines()
  assert len(lines) == 3, result.stdout + result.stderr
  assert "Traceback" not in result.stderr
  assert lines[0].startswith(f"{folder}: checkpoint 2 was not saved, the last good one is step 1 (")
  assert "MiB were free" in lines[0]
  assert ("File too large" if kind == "limited" else "No space left on device") in lines[0]
  assert lines[1:] == ["1", "4 [4]"]


TWO_PROCESSES = """
  import sys
  import jax
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
  import checkpoint_run as run
  from qwen3_jax.checkpoint import Checkpointer

  mesh = run.mesh_of(4)
  checkpoints = Checkpointer(sys.argv[1], keep=2)
  for step in (1, 2):
    checkpoints.save(step, run.state_at(step, mesh), data_state={"position": step})
  checkpoints.wait()
  if jax.process_index() == 0:
    with open(sys.argv[1] + "/2/data/metadata", "w") as file:
      file.write("{}")
  restored = checkpoints.restore(run.abstract(mesh))
  print(restored.step, restored.data_state, checkpoints.all_steps())
  checkpoints.close()
"""


def test_two_processes(tmp_path, unused_port):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
  commands = [
    [sys.executable, "-c", textwrap.dedent(TWO_PROCESSES), str(tmp_path), f"localhost:{unused_port}", str(i)]
    for i in (0, 1)
  ]
  processes = [
    subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for command in commands
  ]
  outputs = [process.communicate(timeout=120) for process in processes]
  assert [out.splitlines()[-1] for out, _ in outputs] == 2 * ["1 {'position': 1} [1]"], outputs
  assert_same(restore(tmp_path).state, run.state_at(1, run.mesh_of(8)))
  assert json.loads((tmp_path / "1" / "data" / "metadata").read_text()) == {"position": 1}


@pytest.fixture
def unused_port():
  import socket

  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]
