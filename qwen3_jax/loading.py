"""Models from and to checkpoint folders, piece by piece: host memory holds a piece, devices hold the model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from qwen3_jax import nearest
from qwen3_jax.atomic_folder import atomic_folder
from qwen3_jax.convert import MAX_SHARD_BYTES, open_source, parse_dtype
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.huggingface import BOX_BYTES, Box, HuggingFaceSink, HuggingFaceSource, Weight, weights, write_config
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, Transformer, from_parameters, parameters
from qwen3_jax.parameter_folder import ParameterSource
from qwen3_jax.safetensors_io import WeightsError
from qwen3_jax.sharding import parameter_shardings

Source = HuggingFaceSource | ParameterSource


def load_pretrained(
  path: str | os.PathLike[str], dtype: str | None = "bfloat16", mesh: Mesh | None = None, **overrides: Any
) -> tuple[Transformer, Tokenizer | None]:
  """Loads a model straight into its shardings, and its tokenizer.

  Args:
    path: a Hugging Face folder (safetensors), our own checkpoint folder, or a stage of a run (its newest step).
    dtype: of parameters and computation: bfloat16, float32 or float16; None keeps what is stored.
    mesh: where to; None is the first device.
    overrides: fields of ModelConfig that leave the shapes alone, e.g. yarn_factor=4.0.

  Returns:
    (model, tokenizer); the tokenizer is None if the folder has none.

  Raises:
    WeightsError: in one line, for a folder that is incomplete, damaged or does not fit its config.json.
  """
  source = open_source(Path(path))
  try:
    tokenizer = _tokenizer(source)
    config, params = _load_all(source, dtype, mesh, overrides)
  finally:
    source.close()
  return from_parameters(config, params), tokenizer


def _tokenizer(source: Source) -> Tokenizer | None:
  try:
    tokenizer = Tokenizer.from_pretrained(source.tokenizer_folder)
  except FileNotFoundError:
    return None
  rows = source.config.vocab_size
  if tokenizer.vocab_size > rows:
    raise WeightsError(f"{source.folder}: the tokenizer has {tokenizer.vocab_size} ids, the embedding only {rows} rows")
  return tokenizer


def load_parameters(
  path: str | os.PathLike[str], dtype: str | None = None, mesh: Mesh | None = None, **overrides: Any
) -> tuple[ModelConfig, Parameters]:
  """The configuration and the parameters of a folder; see `load_pretrained`."""
  source = open_source(Path(path))
  try:
    return _load_all(source, dtype, mesh, overrides)
  finally:
    source.close()


def _load_all(
  source: Source, dtype: str | None, mesh: Mesh | None, overrides: dict[str, Any]
) -> tuple[ModelConfig, Parameters]:
  config = _override(source.config, overrides)
  shardings = None if mesh is None else _flatten(parameter_shardings(config, mesh))
  single = SingleDeviceSharding(jax.local_devices()[0])
  arrays = {}
  for weight in weights(source.config):
    target = parse_dtype(dtype) if dtype else source.dtype(weight)
    arrays[weight.path] = _load(source, weight, target, shardings[weight.path] if shardings else single)
  name = arrays["embed.embedding"].dtype.name
  return config.replace(**{"dtype": name, "param_dtype": name, **overrides}), _nest(arrays)


def _override(config: ModelConfig, overrides: dict[str, Any]) -> ModelConfig:
  fields = [field.name for field in dataclasses.fields(ModelConfig)]
  for name in overrides:
    if name not in fields:
      raise ValueError(f"{name!r} is not a field of ModelConfig" + nearest.clause(name, fields))
  changed = config.replace(**overrides)
  if [(w.path, w.shape) for w in weights(changed)] != [(w.path, w.shape) for w in weights(config)]:
    raise ValueError(f"{overrides} would change the shapes of the stored parameters")
  return changed


def _load(source: Source, weight: Weight, dtype: np.dtype, sharding: Sharding) -> jax.Array:
  """One parameter: by layers where it is large, each layer written into the array on the devices."""
  layers = next(weight.boxes(dtype.itemsize, BOX_BYTES, source.multiples(weight)))[0]
  split = weight.stacked and layers.stop < weight.shape[0]
  if not split or sharding.shard_shape(weight.shape)[0] != weight.shape[0]:
    return _place(source, weight, weight.whole, dtype, sharding)
  array = jax.jit(functools.partial(jnp.zeros, weight.shape, dtype), out_shardings=sharding)()
  insert = jax.jit(_insert, donate_argnums=0, out_shardings=sharding)
  for start in range(0, weight.shape[0], layers.stop):
    part = slice(start, min(start + layers.stop, weight.shape[0]))
    array = insert(array, _place(source, weight, (part, *weight.whole[1:]), dtype, sharding), start)
    array.block_until_ready()  # or pieces would pile up in host memory
  return array


def _insert(array: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(array, part, start, axis=0)


def _place(source: Source, weight: Weight, box: Box, dtype: np.dtype, sharding: Sharding) -> jax.Array:
  """A box as an array on the devices. What this process's devices hold of it is read, once."""
  shape = tuple(part.stop - part.start for part in box)
  held = [_slices(index, shape) for index in sharding.addressable_devices_indices_map(shape).values()]
  low = [min(index[axis].start for index in held) for axis in range(len(shape))]
  high = [max(index[axis].stop for index in held) for axis in range(len(shape))]
  wanted = tuple(slice(part.start + a, part.start + b) for part, a, b in zip(box, low, high))
  data = source.read(weight, wanted, dtype)

  def shard(index: tuple[slice, ...] | None) -> np.ndarray:
    parts = zip(_slices(index, shape), low)
    return data[tuple(slice(part.start - origin, part.stop - origin) for part, origin in parts)]

  return jax.make_array_from_callback(shape, sharding, shard)


def _slices(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
  assert index is not None
  return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape))


def _flatten(tree: Parameters) -> dict[str, Any]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {".".join(key.key for key in path): leaf for path, leaf in leaves}


def _nest(arrays: dict[str, Any]) -> Parameters:
  tree: Parameters = {}
  for path, array in arrays.items():
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = array
  return tree


def save_pretrained(
  path: str | os.PathLike[str],
  model: Transformer,
  tokenizer: Tokenizer | None = None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes the Hugging Face layout, which transformers loads unchanged.

  In a run of several processes each must call this; the first writes, to a folder that appears complete or not at all.

  Raises:
    WeightsError: the folder is not empty, or the disk has too little space.
  """
  config, arrays = model.config, _flatten(parameters(model))
  every = weights(config)
  dtypes = {weight.path: np.dtype(arrays[weight.path].dtype) for weight in every}
  if jax.process_index():
    for weight in every:
      for box in weight.boxes(dtypes[weight.path].itemsize, BOX_BYTES):
        _gather(arrays[weight.path], box)
    return
  total = sum(math.prod(weight.shape) * dtypes[weight.path].itemsize for weight in every)
  with atomic_folder(Path(path), total + BOX_BYTES) as folder:
    sink = HuggingFaceSink(folder, config, dtypes, max_shard_bytes)
    for weight in every:
      for box in weight.boxes(dtypes[weight.path].itemsize, BOX_BYTES):
        sink.write(weight, box, _gather(arrays[weight.path], box))
    sink.close()
    write_config(folder, config, dtypes["embed.embedding"], {})
    if tokenizer is not None:
      tokenizer.save(folder)
    (folder / "generation_config.json").write_text(json.dumps(_generation_config(tokenizer), indent=2) + "\n")


def _generation_config(tokenizer: Tokenizer | None) -> dict[str, Any]:
  """The sampling that the Qwen3 report evaluates thinking with (section 4.6)."""
  config: dict[str, Any] = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
  if tokenizer is not None:
    stops = [tokenizer.special_tokens[name] for name in ("<|im_end|>",) if name in tokenizer.special_tokens]
    config |= {"eos_token_id": [*stops, tokenizer.eos_id], "pad_token_id": tokenizer.pad_id}
  return config


def _gather(array: jax.Array, box: Box) -> np.ndarray:
  """One box of an array, on the host."""
  start = [part.start for part in box]
  piece = _cut(array, start, tuple(part.stop - part.start for part in box))
  if piece.is_fully_addressable:
    return np.asarray(piece)
  assert isinstance(array.sharding, NamedSharding)
  whole = NamedSharding(array.sharding.mesh, PartitionSpec())
  return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(piece).addressable_data(0))


@functools.partial(jax.jit, static_argnums=2)
def _cut(array: jax.Array, start: list[jax.Array], shape: tuple[int, ...]) -> jax.Array:
  return jax.lax.dynamic_slice(array, start, shape)
