"""Hugging Face checkpoints: one table of names and layouts, read both ways.

`Weight` is one of our parameters (stacked over layers and experts) and the Hugging Face tensors it is made of. A box is
a tuple of slices, one for each axis of our array; every reader and writer works on boxes, so nothing is held whole.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.safetensors_io import DTYPES, SafetensorsFolder, SafetensorsWriter, WeightsError, abbreviate

Box = tuple[slice, ...]
BOX_BYTES = 24 << 20  # conversion works on pieces of about this size; the allocator hands such back for reuse

# Our path and axes; Hugging Face's name and axes, where "NH" is one axis that holds heads x head_dim.
# L and, in a name with {expert}, E are stacked: one tensor for each.
_LAYER = "model.layers.{layer}."
_TABLE = (
  ("embed.embedding", "VD", "model.embed_tokens.weight", "V,D"),
  ("layers.attention_norm.scale", "LD", _LAYER + "input_layernorm.weight", "D"),
  ("layers.attention.query", "LDNH", _LAYER + "self_attn.q_proj.weight", "NH,D"),
  ("layers.attention.key", "LDKH", _LAYER + "self_attn.k_proj.weight", "KH,D"),
  ("layers.attention.value", "LDKH", _LAYER + "self_attn.v_proj.weight", "KH,D"),
  ("layers.attention.output", "LAD", _LAYER + "self_attn.o_proj.weight", "D,A"),
  ("layers.attention.query_norm.scale", "LH", _LAYER + "self_attn.q_norm.weight", "H"),
  ("layers.attention.key_norm.scale", "LH", _LAYER + "self_attn.k_norm.weight", "H"),
  ("layers.feed_forward_norm.scale", "LD", _LAYER + "post_attention_layernorm.weight", "D"),
)
_QK_NORM = ("layers.attention.query_norm.scale", "layers.attention.key_norm.scale")
_DENSE = (
  ("layers.feed_forward.gate", "LDF", _LAYER + "mlp.gate_proj.weight", "F,D"),
  ("layers.feed_forward.up", "LDF", _LAYER + "mlp.up_proj.weight", "F,D"),
  ("layers.feed_forward.down", "LFD", _LAYER + "mlp.down_proj.weight", "D,F"),
)
_MOE = (
  ("layers.feed_forward.router", "LDE", _LAYER + "mlp.gate.weight", "E,D"),
  ("layers.feed_forward.gate", "LEDF", _LAYER + "mlp.experts.{expert}.gate_proj.weight", "F,D"),
  ("layers.feed_forward.up", "LEDF", _LAYER + "mlp.experts.{expert}.up_proj.weight", "F,D"),
  ("layers.feed_forward.down", "LEFD", _LAYER + "mlp.experts.{expert}.down_proj.weight", "D,F"),
)
_NORM = ("final_norm.scale", "D", "model.norm.weight", "D")
_HEAD = ("head.kernel", "DV", "lm_head.weight", "V,D")
_FIELDS = {"V": "vocab_size", "L": "num_layers", "D": "hidden_size", "F": "intermediate_size", "N": "num_heads"}
_FIELDS |= {"K": "num_kv_heads", "H": "head_dim", "A": "num_heads*head_dim", "E": "num_experts"}

# What travels with the weights, unchanged.
_COMPANIONS = (
  *("tokenizer*", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
  *("*.tiktoken", "*.model", "chat_template*", "generation_config.json"),
)


@dataclasses.dataclass(frozen=True)
class Weight:
  """One of our parameters and the tensors on disk that it is made of."""

  path: str
  axes: str  # ours
  name: str  # on disk, with {layer} and {expert}
  disk: tuple[str, ...]  # axes on disk
  config: ModelConfig

  def _size(self, axes: str) -> int:
    return math.prod(getattr(self.config, field) for axis in axes for field in _FIELDS[axis].split("*"))

  @functools.cached_property
  def shape(self) -> tuple[int, ...]:
    return tuple(self._size(axis) for axis in self.axes)

  @functools.cached_property
  def disk_shape(self) -> tuple[int, ...]:
    return tuple(self._size(axes) for axes in self.disk)

  @property
  def stacked(self) -> int:
    """How many leading axes are tensors of their own on disk."""
    return self.name.count("{")

  @property
  def disk_fields(self) -> str:
    """The configuration fields behind the shape on disk, for messages."""
    return ", ".join("*".join(_FIELDS[axis] for axis in axes) for axes in self.disk)

  def names(self, box: Box | None = None) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index along the stacked axes, name on disk) of every tensor in the box."""
    box = box or self.whole
    for index in itertools.product(*(range(part.start, part.stop) for part in box[: self.stacked])):
      yield index, self.name.format(**dict(zip(("layer", "expert"), index)))

  @property
  def whole(self) -> Box:
    return tuple(slice(0, size) for size in self.shape)

  def boxes(self, itemsize: int, limit: int, multiples: Sequence[int] | None = None) -> Iterator[Box]:
    """Cuts the parameter into boxes of at most about `limit` bytes, each whole rows of one or more tensors.

    `multiples` (one for each axis) keeps cuts on the boundaries of a store's chunks, however large those are.
    """
    multiples = multiples or (1,) * len(self.shape)
    block = list(self.shape)
    for axis in (*range(self.stacked), self.axes.index(self.disk[0][0], self.stacked)):
      rest = math.prod(block) // block[axis] * itemsize
      block[axis] = min(block[axis], max(1, limit // rest // multiples[axis]) * multiples[axis])
    starts = [range(0, size, step) for size, step in zip(self.shape, block)]
    for corner in itertools.product(*starts):
      yield tuple(slice(a, min(a + step, size)) for a, step, size in zip(corner, block, self.shape))

  def disk_ranges(self, box: Box) -> Box:
    """The box's rows and columns in each tensor on disk. head_dim is never cut."""
    ranges = []
    for axes in self.disk:
      part, inner = box[self.axes.index(axes[0], self.stacked)], self._size(axes[1:])
      ranges.append(slice(part.start * inner, part.stop * inner))
    return tuple(ranges)

  @property
  def _transposed(self) -> bool:
    """Whether the axes on disk are ours in the other order; heads and head_dim move together."""
    return self.axes[self.stacked :] != "".join(self.disk)

  def from_disk(self, tensor: np.ndarray, out: np.ndarray) -> None:
    """Copies one tensor's ranges into `out`: our layout without the stacked axes, contiguous, our dtype."""
    if self._transposed:
      _transpose(tensor, out.reshape(tensor.shape[::-1]))
    else:
      np.copyto(out.reshape(tensor.shape), tensor, casting="unsafe")

  def to_disk(self, array: np.ndarray, ranges: Box, dtype: np.dtype) -> np.ndarray:
    """The inverse of `from_disk` for those ranges: an array in the layout on disk."""
    shape = [part.stop - part.start for part in ranges]
    if not self._transposed:
      return array.reshape(shape).astype(dtype, copy=False)
    out = np.empty(shape, dtype)
    _transpose(array.reshape(shape[::-1]), out)
    return out


def _transpose(source: np.ndarray, out: np.ndarray) -> None:
  """out = source.T with a cast.

  Goes by tiles that stay in the cache. Each passes through a buffer with an odd row length, since rows that lie a power
  of two apart, as the weights' do, would all compete for the same cache lines (this is 3 to 6 times faster).
  """
  if out.dtype == source.dtype:
    raw = np.dtype(f"u{out.dtype.itemsize}")  # numpy copies plain integers faster than bfloat16
    out, source = out.view(raw), source.view(raw)
  tile = 128
  buffer = np.empty((tile, tile + 32), source.dtype)
  for i in range(0, source.shape[0], tile):
    for j in range(0, source.shape[1], tile):
      part = source[i : i + tile, j : j + tile]
      padded = buffer[: part.shape[0], : part.shape[1]]
      padded[...] = part
      np.copyto(out[j : j + tile, i : i + tile], padded.T, casting="unsafe")


def weights(config: ModelConfig) -> list[Weight]:
  """Every parameter of the model, in the order of the tree."""
  shared = [row for row in _TABLE if config.qk_norm or row[0] not in _QK_NORM]
  table = [*shared, *(_MOE if config.is_moe else _DENSE), _NORM, *(() if config.tie_word_embeddings else (_HEAD,))]
  return [Weight(path, axes, name, tuple(disk.split(",")), config) for path, axes, name, disk in table]


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
  """The folder's `config.json`: as a ModelConfig, and as written."""
  file = folder / "config.json"
  if not file.exists():
    raise WeightsError(f"{file}: not found")
  try:
    written = json.loads(file.read_text())
    return ModelConfig.from_hf(written), written
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise WeightsError(f"{file}: {error}") from None


def write_config(folder: Path, config: ModelConfig, dtype: np.dtype, written: dict[str, Any]) -> None:
  """`config.json` in transformers' spelling; keys of `written` that describe no part of the model are kept."""
  dtypes = {"dtype": dtype.name, "torch_dtype": dtype.name}  # transformers 5, transformers 4
  (folder / "config.json").write_text(json.dumps(written | config.to_hf() | dtypes, indent=2) + "\n")


def copy_companions(source: Path, target: Path) -> None:
  """Copies the tokenizer's files, the chat template and `generation_config.json`, where there are any."""
  for pattern in _COMPANIONS:
    for file in source.glob(pattern):
      if file.is_file():
        shutil.copyfile(file, target / file.name)


class HuggingFaceSource:
  """Parameters out of a Hugging Face folder. Opening it checks every name, shape and dtype.

  Raises WeightsError that lists all missing and unexpected tensors, or names the first wrong one.
  """

  def __init__(self, folder: Path):
    self.folder = self.tokenizer_folder = folder
    self.config, self.written_config = read_config(folder)
    self._files = SafetensorsFolder(folder)
    self._check_names()
    self._dtypes = {weight.path: self._check(weight) for weight in weights(self.config)}
    self._check_tied_head()

  def _check_names(self) -> None:
    expected = {name for weight in weights(self.config) for _, name in weight.names()}
    found = set(self._files.tensors)
    if self.config.tie_word_embeddings:
      found.discard("lm_head.weight")  # checked apart
    problems = []
    for kind, names in (("missing", sorted(expected - found)), ("unexpected", sorted(found - expected))):
      if names:
        problems.append(f"{len(names)} {kind} tensor{'s' * (len(names) > 1)}: {abbreviate(names)}")
    if expected - found == {"lm_head.weight"}:
      problems.append("config.json says tie_word_embeddings=false")
    if problems:
      raise WeightsError(f"{self.folder}: {'; '.join(problems)}")

  def _check(self, weight: Weight) -> np.dtype:
    dtypes: dict[str, str] = {}
    for _, name in weight.names():
      tensor = self._files.tensors[name]
      if tensor.shape != weight.disk_shape:
        raise WeightsError(
          f"{tensor.file}: {name} has shape {list(tensor.shape)}, expected {list(weight.disk_shape)}"
          f" ({weight.disk_fields} of config.json)"
        )
      if tensor.dtype not in DTYPES:
        raise WeightsError(f"{tensor.file}: {name} has dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}")
      dtypes.setdefault(tensor.dtype, name)
    if len(dtypes) > 1:
      (a, first), (b, second) = list(dtypes.items())[:2]
      raise WeightsError(f"{self.folder}: {first} is {a} but {second} is {b}; layers of one parameter must agree")
    return DTYPES[next(iter(dtypes))]

  def _check_tied_head(self) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    tensors = self._files.tensors
    if not self.config.tie_word_embeddings or head not in tensors:
      return
    same = (tensors[head].shape, tensors[head].dtype) == (tensors[embedding].shape, tensors[embedding].dtype)
    for box in weights(self.config)[0].boxes(self._dtypes["embed.embedding"].itemsize, BOX_BYTES):
      same = same and self._files.read(head, box).tobytes() == self._files.read(embedding, box).tobytes()
    if not same:
      raise WeightsError(
        f"{tensors[head].file}: {head} differs from {embedding}, but config.json says tie_word_embeddings=true"
      )

  def dtype(self, weight: Weight) -> np.dtype:
    return self._dtypes[weight.path]

  def multiples(self, weight: Weight) -> tuple[int, ...]:
    return (1,) * len(weight.shape)

  def read(self, weight: Weight, box: Box, dtype: np.dtype) -> np.ndarray:
    """Our array's box, cast to `dtype`."""
    out = np.empty([part.stop - part.start for part in box], dtype)
    origin = [part.start for part in box[: weight.stacked]]
    ranges = weight.disk_ranges(box)
    for index, name in weight.names(box):
      target = out[tuple(i - start for i, start in zip(index, origin))]
      weight.from_disk(self._files.read(name, ranges), target)
    return out

  def close(self) -> None:
    self._files.close()


class HuggingFaceSink:
  """Writes parameters as a Hugging Face folder's safetensors; `folder` exists.

  Args:
    dtypes: path -> dtype on disk.

  Raises WeightsError for a model that transformers has no form of.
  """

  def __init__(self, folder: Path, config: ModelConfig, dtypes: dict[str, np.dtype], max_shard_bytes: int):
    if not config.qk_norm:
      raise WeightsError(f"{folder}: model.qk_norm=False, expected True: transformers' Qwen3 always has QK-Norm")
    self._dtypes = dtypes
    entries = [(name, index, w) for w in weights(config) for index, name in w.names()]
    # Layer by layer, as the released ones: a shard then holds neighbouring layers.
    place = {"embed.embedding": -1, "final_norm.scale": config.num_layers, "head.kernel": config.num_layers}
    entries.sort(key=lambda entry: entry[1][0] if entry[1] else place[entry[2].path])
    tensors = {name: (dtypes[weight.path], weight.disk_shape) for name, _, weight in entries}
    self._files = SafetensorsWriter(folder, tensors, max_shard_bytes)

  def write(self, weight: Weight, box: Box, array: np.ndarray) -> None:
    """Stores our array's box, which must span whole rows on disk."""
    origin = [part.start for part in box[: weight.stacked]]
    ranges = weight.disk_ranges(box)
    for index, name in weight.names(box):
      part = array[tuple(i - start for i, start in zip(index, origin))]
      self._files.write(name, ranges[0].start, weight.to_disk(part, ranges, self._dtypes[weight.path]))

  def close(self) -> None:
    self._files.close()
