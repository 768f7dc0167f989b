"""The convert command: both directions, bounded memory, nothing half-written, orbax reads the result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from qwen3_jax import atomic_folder, convert, huggingface
from qwen3_jax.huggingface import weights, write_config
from qwen3_jax.loading import load_parameters, load_pretrained, save_pretrained
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import abstract_parameters, parameters
from qwen3_jax.parameter_folder import chunk_shape
from qwen3_jax.safetensors_io import SafetensorsWriter, WeightsError
from qwen3_jax.sharding import make_mesh, parameter_shardings

KINDS = ("dense", "moe", "dense_tied_yarn")


def tensors(folder):
  found = {}
  for file in sorted(folder.glob("*.safetensors")):
    found |= load_file(file)
  return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in found.items()}


def assert_same_trees(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def abstract(config, mesh):
  def one(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(one, abstract_parameters(config), parameter_shardings(config, mesh))


@pytest.fixture
def ours(golden, tmp_path):
  convert.convert(golden / "moe", tmp_path / "ours")
  return tmp_path / "ours"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box_bytes", (2_000, 24 << 20))
def test_round_trip(golden, tmp_path, monkeypatch, kind, box_bytes):
  monkeypatch.setattr(convert, "BOX_BYTES", box_bytes)
  (tmp_path / "source").mkdir()
  for file in ("config.json", "model.safetensors", "generation_config.json"):
    shutil.copy(golden / kind / file, tmp_path / "source")
  (tmp_path / "source" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
  reports = []
  kind_written = convert.convert(tmp_path / "source", tmp_path / "ours", progress=lambda *done: reports.append(done))
  assert kind_written == "checkpoint"
  assert reports[-1][0] == reports[-1][1] and reports == sorted(reports)
  assert convert.convert(tmp_path / "ours", tmp_path / "back", max_shard_bytes=200_000) == "safetensors"
  assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
  assert tensors(tmp_path / "source") == tensors(tmp_path / "back")
  for file in ("generation_config.json", "tokenizer_config.json"):
    assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "source" / file).read_bytes()
  before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("source", "back"))
  assert ModelConfig.from_hf(before) == ModelConfig.from_hf(after)
  assert after["eos_token_id"] == before["eos_token_id"]  # what is not about the model is kept
  assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_dtype(golden, tmp_path):
  convert.convert(golden / "dense", tmp_path / "ours", dtype="bfloat16")
  convert.convert(tmp_path / "ours", tmp_path / "back")
  stored = load_file(golden / "dense" / "model.safetensors")
  expected = {name: x.astype(ml_dtypes.bfloat16).tobytes() for name, x in stored.items()}
  assert {name: x[2] for name, x in tensors(tmp_path / "back").items()} == expected
  assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"


def test_load_pretrained_reads_our_folder(golden, ours):
  expected, _ = load_pretrained(golden / "moe", dtype="float32")
  for mesh in (None, make_mesh({"fsdp": 2, "tensor": 2, "expert": 2})):
    model, tokenizer = load_pretrained(ours, dtype="float32", mesh=mesh)
    assert tokenizer is None and model.config == expected.config
    assert_same_trees(parameters(model), parameters(expected))


def test_orbax_restores_our_folder(golden, ours):
  config, expected = load_parameters(golden / "moe")
  for mesh in ({"fsdp": 8}, {"data": 2, "tensor": 2, "expert": 2}):
    target = abstract(config, make_mesh(mesh))
    restored = ocp.StandardCheckpointer().restore(ours / "parameters", target)
    assert_same_trees(restored, expected)
    for array, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target)):
      assert array.sharding.is_equivalent_to(wanted.sharding, array.ndim)


def test_a_stage_of_a_run_is_read_and_exported(golden, tmp_path):
  """What orbax itself writes, step by step, as in training: the newest step, from any folder above it."""
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  config, params = load_parameters(golden / "dense", mesh=mesh)
  stage = tmp_path / "run" / "stages" / "s1"
  with ocp.CheckpointManager(stage / "checkpoints") as manager:
    for step, factor in ((9, 0), (10, 1)):
      tree = jax.tree.map(lambda x, factor=factor: x * factor, params)
      manager.save(step, args=ocp.args.Composite(parameters=ocp.args.PyTreeSave(tree)))
    manager.wait_until_finished()
  write_config(stage, config, np.dtype("float32"), {})
  for path in (stage, stage / "checkpoints", stage / "checkpoints" / "10"):
    assert_same_trees(load_parameters(path)[1], params)
  convert.convert(stage, tmp_path / "out")
  assert tensors(tmp_path / "out") == tensors(golden / "dense")


def test_all_zero_chunks_are_stored(tmp_path, golden):
  shutil.copytree(golden / "dense", tmp_path / "zero")
  stored = load_file(tmp_path / "zero" / "model.safetensors")
  stored["model.norm.weight"][:] = 0
  save_file(stored, tmp_path / "zero" / "model.safetensors")
  convert.convert(tmp_path / "zero", tmp_path / "ours")
  assert not np.asarray(load_parameters(tmp_path / "ours")[1]["final_norm"]["scale"]).any()


def test_chunks_stay_small():
  for config in (huggingface.ModelConfig(), ModelConfig(num_experts=128, hidden_size=4096, intermediate_size=1536)):
    for weight in weights(config):
      chunk = chunk_shape(weight, 2)
      assert all(size % part == 0 for size, part in zip(weight.shape, chunk))
      assert np.prod(chunk) * 2 <= 4 << 20


# Memory

_MEASURE = """
import sys
def peak():
  return [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0] >> 10
"""
_CONVERT = """
from qwen3_jax.convert import main
before = peak()
assert main(sys.argv[1:]) == 0
print(peak() - before)
"""
_LOAD = """
import jax
from qwen3_jax.loading import load_parameters
jax.numpy.zeros(3).block_until_ready()
before = peak()
params = load_parameters(sys.argv[1])
print(peak() - before)
"""


def peak_growth(code, *arguments):
  """MiB that a process of its own grows by at its peak."""
  command = [sys.executable, "-c", _MEASURE + code, *arguments]
  # One arena: the figure is then what is held, not what the allocator keeps at hand for every thread.
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"}
  done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
  return int(done.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("experts", (0, 16))
def test_memory_is_bounded(tmp_path, experts):
  """About 900 MB of weights: conversion holds a few pieces, loading one copy on the device and a few pieces."""
  config = ModelConfig(
    num_layers=4 if experts else 6,
    hidden_size=2048,
    intermediate_size=1024 if experts else 8192,
    num_experts=experts,
    vocab_size=16_384,
  )
  dtype = np.dtype(ml_dtypes.bfloat16)
  disk = {name: (dtype, weight.disk_shape) for weight in weights(config) for _, name in weight.names()}
  (tmp_path / "source").mkdir()
  writer = SafetensorsWriter(tmp_path / "source", disk, 300_000_000)
  rows = np.arange(16_384 * 8192, dtype=np.uint16).view(dtype)
  for name, (_, shape) in disk.items():
    writer.write(name, 0, rows[: np.prod(shape)].reshape(shape))
  writer.close()
  write_config(tmp_path / "source", config, dtype, {})
  size = sum(file.stat().st_size for file in (tmp_path / "source").iterdir()) >> 20
  assert size > 700
  for source, target in (("source", "ours"), ("ours", "back")):
    growth = peak_growth(_CONVERT, f"--input={tmp_path / source}", f"--output={tmp_path / target}")
    assert growth < 300, f"{source} -> {target}: {growth} MiB"
  for folder in ("source", "ours"):
    growth = peak_growth(_LOAD, str(tmp_path / folder))
    assert growth < size + 350, f"loading {folder}, {size} MiB: {growth} MiB"
  shutil.rmtree(tmp_path)


# Refusals


def run(capsys, *arguments):
  """(exit status, what was printed as an error) of the command."""
  code = convert.main([str(argument) for argument in arguments])
  return code, capsys.readouterr().err


def test_the_command(golden, tmp_path, capsys):
  assert run(capsys, f"--input={golden / 'dense'}", f"--output={tmp_path / 'a' / 'ours'}") == (0, "")
  assert run(capsys, f"--input={tmp_path / 'a' / 'ours'}", f"--output={tmp_path / 'back'}") == (0, "")
  assert tensors(tmp_path / "back") == tensors(golden / "dense")


def test_refuses_a_full_output(golden, tmp_path, capsys):
  (tmp_path / "precious").write_text("x")
  code, text = run(capsys, f"--input={golden / 'dense'}", f"--output={tmp_path}")
  assert code == 1 and text == f"error: {tmp_path}: already there and not empty; choose another output or remove it\n"
  assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_refuses_too_small_a_disk(golden, tmp_path, capsys, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(atomic_folder.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
  code, text = run(capsys, f"--input={golden / 'dense'}", f"--output={tmp_path / 'out'}")
  assert code == 1 and "needs 0.1 GB" in text and "has 0.0 GB free" in text and text.count("\n") == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("direction", ("ours", "safetensors"))
def test_disk_fills_up_while_writing(golden, ours, tmp_path, monkeypatch, capsys, direction):
  def full(*_):
    raise OSError(28, "No space left on device")

  if direction == "ours":
    monkeypatch.setattr(convert.ParameterSink, "write", full)
  else:
    monkeypatch.setattr(os, "pwrite", full)
  source = golden / "dense" if direction == "ours" else ours
  code, text = run(capsys, f"--input={source}", f"--output={tmp_path / 'out'}")
  assert code == 1 and "the disk filled up while writing; nothing was kept" in text and text.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_bad_inputs_end_in_one_line(golden, tmp_path, capsys):
  (tmp_path / "bad").mkdir()
  for make, expected in (
    (lambda: None, "config.json: not found"),
    (lambda: shutil.copy(golden / "moe" / "config.json", tmp_path / "bad"), "neither model.safetensors nor"),
    (lambda: shutil.copy(golden / "dense" / "model.safetensors", tmp_path / "bad"), "missing tensors: model.layers.0"),
  ):
    make()
    code, text = run(capsys, f"--input={tmp_path / 'bad'}", f"--output={tmp_path / 'out'}")
    assert code == 1 and expected in text and text.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_damaged_folders_of_ours(ours, tmp_path):
  def damaged(change):
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    shutil.copytree(ours, tmp_path / "copy")
    change(tmp_path / "copy")
    with pytest.raises(WeightsError) as caught:
      load_parameters(tmp_path / "copy")
    assert "\n" not in str(caught.value)
    return str(caught.value)

  def rename(folder):
    file = folder / "parameters" / "_METADATA"
    file.write_text(file.read_text().replace("router", "ruter"))

  def config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))

  def truncate(folder):
    for file in (folder / "parameters" / "d").iterdir():
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

  message = damaged(rename)
  assert "1 missing and 1 unexpected" in message or "1 missing arrays: layers.feed_forward.router" in message
  assert "_METADATA: corrupt" in damaged(lambda f: (f / "parameters" / "_METADATA").write_text("{"))
  assert "layers.feed_forward.gate has shape [3, 8, 64, 32]" in damaged(lambda f: config(f, moe_intermediate_size=48))
  assert "config.json: not found" in damaged(lambda f: (f / "config.json").unlink())
  assert "cannot be" in damaged(truncate)
  assert "cannot be opened" in damaged(lambda f: (f / "parameters" / "manifest.ocdbt").unlink())


def test_a_killed_conversion_leaves_nothing_under_the_name(golden, tmp_path):
  stall = (
    "import sys, time; from qwen3_jax import convert\n"
    "write = convert.ParameterSink.write\n"
    "def slow(*args): write(*args); print('wrote', flush=True); time.sleep(60)\n"
    "convert.ParameterSink.write = slow; convert.main(sys.argv[1:])"
  )
  command = [sys.executable, "-c", stall, f"--input={golden / 'dense'}", f"--output={tmp_path / 'out'}"]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  while "wrote" not in child.stdout.readline():
    time.sleep(0.01)
  child.send_signal(signal.SIGKILL)
  child.wait()
  child.stdout.close()
  assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").exists()
  convert.convert(golden / "dense", tmp_path / "out")  # and the next run clears what was left
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_save_pretrained_writes_the_tokenizer(golden, tmp_path):
  from tokenizers import Tokenizer as Backend
  from tokenizers import decoders, models, pre_tokenizers

  from qwen3_jax import Tokenizer

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = Backend(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
  backend.save(str(tmp_path / "tokenizer.json"))
  model, _ = load_pretrained(golden / "dense")
  save_pretrained(tmp_path / "out", model, Tokenizer.from_pretrained(tmp_path))
  _, tokenizer = load_pretrained(tmp_path / "out")
  assert tokenizer.decode(tokenizer.encode("naïve")) == "naïve"
  generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert generation["eos_token_id"] == [258, 256] and generation["pad_token_id"] == 256
