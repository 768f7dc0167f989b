"""load_pretrained and save_pretrained: names, layouts, shardings, and every way that a checkpoint can be bad."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qwen3_jax
from qwen3_jax import loading
from qwen3_jax.huggingface import weights
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.config import MODELS
from qwen3_jax.models.transformer import abstract_parameters, parameters
from qwen3_jax.safetensors_io import SafetensorsFolder, WeightsError
from qwen3_jax.sharding import make_mesh, parameter_shardings

KINDS = ("dense", "moe", "dense_tied_yarn")
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def checkpoint(golden, tmp_path):
  """A writable copy of the dense checkpoint."""
  shutil.copytree(golden / "dense", tmp_path / "checkpoint")
  return tmp_path / "checkpoint"


def tensors(folder):
  found = {}
  for file in sorted(folder.glob("*.safetensors")):
    found |= load_file(file)
  return found


def assert_same_bytes(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
    assert a[name].tobytes() == b[name].tobytes(), name


def assert_same_trees(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def edit(folder, change):
  """Rewrites model.safetensors through the reference library."""
  contents = load_file(folder / "model.safetensors")
  change(contents)
  save_file(contents, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
  file = folder / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def split(folder, shards=3):
  """Turns the single file into indexed shards."""
  contents = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  weight_map = {}
  for i in range(shards):
    name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
    part = dict(list(contents.items())[i::shards])
    save_file(part, folder / name)
    weight_map |= dict.fromkeys(part, name)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  return weight_map


def error(folder):
  with pytest.raises(WeightsError) as caught:
    load_parameters(folder)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_the_table_describes_the_models_parameters():
  for config in MODELS.values():
    shapes, _ = jax.tree_util.tree_flatten_with_path(abstract_parameters(config))
    ours = {".".join(key.key for key in path): leaf.shape for path, leaf in shapes}
    assert ours == {weight.path: weight.shape for weight in weights(config)}


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_against_the_definition(golden, kind):
  """Every tensor, indexed by hand: Hugging Face stores [out, in]."""
  config, params = load_parameters(golden / kind)
  stored = tensors(golden / kind)
  layers = params["layers"]
  n, k, h, d = config.num_heads, config.num_kv_heads, config.head_dim, config.hidden_size
  assert np.array_equal(params["embed"]["embedding"], stored["model.embed_tokens.weight"])
  assert np.array_equal(params["final_norm"]["scale"], stored["model.norm.weight"])
  assert ("head" in params) == (not config.tie_word_embeddings)
  if "head" in params:
    assert np.array_equal(params["head"]["kernel"], stored["lm_head.weight"].T)
  for i in range(config.num_layers):
    layer = {name.split(f"layers.{i}.")[1]: x for name, x in stored.items() if f".layers.{i}." in name}
    for name, heads in (("query", n), ("key", k), ("value", k)):
      expected = layer[f"self_attn.{name[0]}_proj.weight"].T.reshape(d, heads, h)
      assert np.array_equal(layers["attention"][name][i], expected)
    assert np.array_equal(layers["attention"]["output"][i], layer["self_attn.o_proj.weight"].T)
    assert np.array_equal(layers["attention"]["query_norm"]["scale"][i], layer["self_attn.q_norm.weight"])
    assert np.array_equal(layers["attention"]["key_norm"]["scale"][i], layer["self_attn.k_norm.weight"])
    assert np.array_equal(layers["attention_norm"]["scale"][i], layer["input_layernorm.weight"])
    assert np.array_equal(layers["feed_forward_norm"]["scale"][i], layer["post_attention_layernorm.weight"])
    for name in ("gate", "up", "down"):
      ours = layers["feed_forward"][name][i]
      if config.is_moe:
        expected = np.stack([layer[f"mlp.experts.{e}.{name}_proj.weight"].T for e in range(config.num_experts)])
      else:
        expected = layer[f"mlp.{name}_proj.weight"].T
      assert np.array_equal(ours, expected)
    if config.is_moe:
      assert np.array_equal(layers["feed_forward"]["router"][i], layer["mlp.gate.weight"].T)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_gives_back_the_same_bytes(golden, tmp_path, kind):
  model, tokenizer = qwen3_jax.load_pretrained(golden / kind, dtype=None)
  assert tokenizer is None
  qwen3_jax.save_pretrained(tmp_path / "single", model)
  assert_same_bytes(tensors(golden / kind), tensors(tmp_path / "single"))
  qwen3_jax.save_pretrained(tmp_path / "sharded", model, max_shard_bytes=150_000)
  assert not (tmp_path / "sharded" / "model.safetensors").exists()
  assert_same_bytes(tensors(golden / kind), tensors(tmp_path / "sharded"))
  index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors(golden / kind).values())
  again, _ = qwen3_jax.load_pretrained(tmp_path / "sharded", dtype=None)
  assert_same_trees(parameters(model), parameters(again))
  assert again.config.replace(name="") == model.config.replace(name="")


def test_bfloat16_is_kept_to_the_bit(checkpoint, tmp_path):
  edit(checkpoint, lambda t: t.update({name: x.astype(ml_dtypes.bfloat16) for name, x in t.items()}))
  model, _ = qwen3_jax.load_pretrained(checkpoint, dtype=None)
  assert model.config.param_dtype == model.config.dtype == "bfloat16"
  qwen3_jax.save_pretrained(tmp_path / "out", model)
  assert_same_bytes(tensors(checkpoint), tensors(tmp_path / "out"))
  assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_dtype_casts(golden):
  model, _ = qwen3_jax.load_pretrained(golden / "dense", dtype="bfloat16")
  expected = tensors(golden / "dense")["lm_head.weight"].T.astype(ml_dtypes.bfloat16)
  assert np.array_equal(np.asarray(parameters(model)["head"]["kernel"]), expected)
  with pytest.raises(WeightsError, match="'int8' is not known; expected one of float32, bfloat16, float16"):
    qwen3_jax.load_pretrained(golden / "dense", dtype="int8")


MESHES = ({"fsdp": 8}, {"tensor": 2, "fsdp": 2, "expert": 2}, {"data": 4, "expert": 2})


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("kind", ("dense", "moe"))
@pytest.mark.parametrize("box_bytes", (5_000, 24 << 20))  # layer by layer, and whole
def test_loading_into_shardings(golden, tmp_path, monkeypatch, mesh, kind, box_bytes):
  monkeypatch.setattr(loading, "BOX_BYTES", box_bytes)
  mesh = make_mesh(mesh)
  config, plain = load_parameters(golden / kind)
  model, _ = qwen3_jax.load_pretrained(golden / kind, dtype="float32", mesh=mesh)
  assert_same_trees(plain, parameters(model))
  for array, sharding in zip(jax.tree.leaves(parameters(model)), jax.tree.leaves(parameter_shardings(config, mesh))):
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
  qwen3_jax.save_pretrained(tmp_path / "out", model)
  assert_same_bytes(tensors(golden / kind), tensors(tmp_path / "out"))


def test_only_wanted_bytes_are_read(tmp_path, monkeypatch):
  matrix = np.arange(64 * 8192, dtype=np.float32).reshape(64, 8192)
  save_file({"x": matrix}, tmp_path / "model.safetensors")
  folder = SafetensorsFolder(tmp_path)
  read, preadv = [], os.preadv
  monkeypatch.setattr(os, "preadv", lambda *args: read.append(preadv(*args)) or read[-1])
  every = slice(0, 8192)
  # Whole rows; runs longer than a page; the same in few rows; runs so short that whole rows are read.
  for rows, columns, rows_read in (
    (slice(3, 11), every, 8),
    (slice(0, 64), slice(4096, 6144), 16),
    (slice(3, 11), slice(4096, 6144), 2),
    (slice(3, 11), slice(4096, 4112), 8),
  ):
    read.clear()
    assert np.array_equal(folder.read("x", (rows, columns)), matrix[rows, columns])
    assert sum(read) == rows_read * 8192 * 4
  folder.close()


def test_overrides(golden):
  model, _ = qwen3_jax.load_pretrained(golden / "dense", dtype="float32", rope_theta=1e4, yarn_factor=4.0)
  assert (model.config.rope_theta, model.config.yarn_factor) == (1e4, 4.0)
  with pytest.raises(ValueError, match=r"'rope_thet' is not a field of ModelConfig; did you mean 'rope_theta'\?"):
    qwen3_jax.load_pretrained(golden / "dense", rope_thet=1e4)
  with pytest.raises(ValueError, match="would change the shapes"):
    qwen3_jax.load_pretrained(golden / "dense", num_layers=2)


def test_importing_the_package_is_cheap():
  code = "import sys, qwen3_jax; assert not {'jax', 'numpy'} & set(sys.modules); print(qwen3_jax.load_pretrained)"
  subprocess.run([sys.executable, "-c", code], check=True)
  with pytest.raises(AttributeError, match="no attribute 'load_pretraned'"):
    _ = qwen3_jax.load_pretraned


# Checkpoints in transformers


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_we_save(golden, tmp_path, kind):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model, _ = qwen3_jax.load_pretrained(golden / kind, dtype="float32")
  qwen3_jax.save_pretrained(tmp_path / "out", model, max_shard_bytes=200_000)
  reference, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
  assert reference.dtype == torch.float32
  tokens = np.random.default_rng(0).integers(0, 512, (2, 48))
  with torch.no_grad():
    expected = reference.eval()(torch.from_numpy(tokens)).logits.numpy()
  logits = np.asarray(model(jax.numpy.asarray(tokens, "int32")).logits)
  assert np.abs(logits - expected).max() < 2e-5
  reference.save_pretrained(tmp_path / "theirs")
  assert_same_bytes(tensors(golden / kind), tensors(tmp_path / "theirs"))


# Bad checkpoints


def test_missing_and_unexpected_tensors_are_all_listed(checkpoint):
  def change(t):
    t["model.layers.1.self_attn.query.weight"] = t.pop(Q_PROJ)
    del t["model.norm.weight"]

  edit(checkpoint, change)
  message = error(checkpoint)
  assert f"2 missing tensors: {Q_PROJ}, model.norm.weight" in message
  assert "1 unexpected tensor: model.layers.1.self_attn.query.weight" in message


def test_long_lists_are_abbreviated(checkpoint):
  edit_config(checkpoint, num_hidden_layers=6)  # three layers of eleven tensors too few
  assert "33 missing tensors" in (message := error(checkpoint)) and "and 13 more" in message


def test_wrong_shape(checkpoint):
  edit(checkpoint, lambda t: t.update({Q_PROJ: np.ascontiguousarray(t[Q_PROJ].T)}))
  assert f"model.safetensors: {Q_PROJ} has shape [64, 128], expected [128, 64]" in error(checkpoint)


def test_vocabulary_rows_differ_from_the_config(checkpoint):
  edit_config(checkpoint, vocab_size=1024)
  assert "embed_tokens.weight has shape [512, 64], expected [1024, 64] (vocab_size, hidden_size" in error(checkpoint)


def test_more_tokens_than_rows(checkpoint):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  pieces = [*alphabet, *(a + b for a in alphabet[:20] for b in alphabet[:20])]
  tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.save(str(checkpoint / "tokenizer.json"))
  with pytest.raises(WeightsError, match="the tokenizer has 656 ids, the embedding only 512 rows"):
    qwen3_jax.load_pretrained(checkpoint)


def test_wrong_dtype(checkpoint):
  edit(checkpoint, lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(np.int8)}))
  assert f"{Q_PROJ} has dtype I8, expected one of F32, BF16, F16" in error(checkpoint)


def test_layers_of_different_dtypes(checkpoint):
  edit(checkpoint, lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(np.float16)}))
  assert f"q_proj.weight is F32 but {Q_PROJ} is F16" in error(checkpoint)


@pytest.mark.parametrize("keep", (0, 4, 100, -1))
def test_truncated_file(checkpoint, keep):
  file = checkpoint / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  assert f"{file}: " in (message := error(checkpoint)) and "truncated" in message


def test_trailing_bytes(checkpoint):
  with (checkpoint / "model.safetensors").open("ab") as file:
    file.write(b"x")
  assert "too long" in error(checkpoint)


@pytest.mark.parametrize(
  "header",
  (
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"x": 3}',
    b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
    b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
    b"[" * 100_000,
  ),
  ids=lambda header: header[:40].decode("latin1"),
)
def test_corrupt_header(checkpoint, header):
  (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
  assert "model.safetensors: corrupt header" in error(checkpoint)


@pytest.mark.parametrize("length", (2**63, 2**64 - 1, 200_000_000))
def test_huge_header_length(checkpoint, length):
  file = checkpoint / "model.safetensors"
  file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
  assert f"a header of {length} bytes in a file of" in error(checkpoint)


def test_sharded(checkpoint, golden):
  split(checkpoint)
  assert_same_trees(load_parameters(checkpoint)[1], load_parameters(golden / "dense")[1])


def test_missing_shard(checkpoint):
  split(checkpoint)
  (checkpoint / "model-00002-of-00003.safetensors").unlink()
  assert "1 of 3 shards are missing: model-00002-of-00003.safetensors" in error(checkpoint)


def test_shard_lacks_a_listed_tensor(checkpoint):
  weight_map = split(checkpoint)
  weight_map[Q_PROJ] = next(shard for shard in weight_map.values() if shard != weight_map[Q_PROJ])
  (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  assert f"not in their shard: {Q_PROJ} ({weight_map[Q_PROJ]})" in error(checkpoint)


@pytest.mark.parametrize("name", ("../model.safetensors", "/etc/passwd", "..", "a/b.safetensors", ""))
def test_index_points_outside(checkpoint, name):
  weight_map = split(checkpoint) | {Q_PROJ: name}
  (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  assert "points outside the folder" in error(checkpoint)


@pytest.mark.parametrize("text", ("", "{}", "[]", '{"weight_map": 3}', '{"weight_map": [1]}'))
def test_corrupt_index(checkpoint, text):
  split(checkpoint)
  (checkpoint / "model.safetensors.index.json").write_text(text)
  assert "model.safetensors.index.json: corrupt index" in error(checkpoint)


def test_pickled_weights_are_refused(checkpoint):
  (checkpoint / "model.safetensors").unlink()
  (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({}))
  assert "pickled PyTorch weights are not read" in error(checkpoint)


def test_empty_and_absent_folders(checkpoint, tmp_path):
  assert "no such folder" in error(tmp_path / "nowhere")
  (checkpoint / "model.safetensors").unlink()
  assert "neither model.safetensors nor model.safetensors.index.json found" in error(checkpoint)
  (checkpoint / "config.json").unlink()
  assert "config.json: not found" in error(checkpoint)


@pytest.mark.parametrize("text", ("", "[]", '{"model_type": "llama"}', '{"model_type": "qwen3", "vocab_size": 3}'))
def test_bad_config(checkpoint, text):
  (checkpoint / "config.json").write_text(text)
  assert "config.json: " in error(checkpoint)


def test_untied_without_a_head(checkpoint):
  edit(checkpoint, lambda t: t.pop("lm_head.weight"))
  message = error(checkpoint)
  assert "1 missing tensor: lm_head.weight; config.json says tie_word_embeddings=false" in message


def test_tied_with_a_head(golden, tmp_path):
  shutil.copytree(golden / "dense_tied_yarn", tmp_path / "tied")
  edit(tmp_path / "tied", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
  _, params = load_parameters(tmp_path / "tied")
  assert_same_trees(params, load_parameters(golden / "dense_tied_yarn")[1])
  edit(tmp_path / "tied", lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
  assert "lm_head.weight differs from model.embed_tokens.weight" in error(tmp_path / "tied")


def test_saving_onto_something(golden, tmp_path):
  model, _ = qwen3_jax.load_pretrained(golden / "dense")
  (tmp_path / "precious").write_text("x")
  with pytest.raises(WeightsError, match="already there and not empty"):
    qwen3_jax.save_pretrained(tmp_path, model)
  assert (tmp_path / "precious").read_text() == "x"
