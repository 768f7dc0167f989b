"""Our own checkpoint folder's parameters: the layout that orbax restores, read and written box by box.

orbax saves a tree in one call and so wants it whole in memory; here each box goes to tensorstore as it comes, and the
folder ends up as orbax would have left it: zarr arrays in one OCDBT store and a `_METADATA` that lists them.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from qwen3_jax.huggingface import Box, Weight, read_config, weights
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.safetensors_io import DTYPES, WeightsError, abbreviate

PARAMETERS = "parameters"  # the item of a checkpoint folder that holds them
_CHUNK_BYTES = 4 << 20  # small enough that a device's shard reads little more than itself
_DICT_KEY = 2  # orbax's code for the key of a dict
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def find_checkpoint(path: Path) -> Path | None:
  """`path` if it is a checkpoint folder, the newest step if it is a run's stage or its `checkpoints`, else None."""
  if (path / PARAMETERS / "_METADATA").exists():
    return path
  for steps in (path, path / "checkpoints"):
    found = [step for step in steps.glob("*/") if step.name.isdigit() and (step / PARAMETERS / "_METADATA").exists()]
    if found:
      return max(found, key=lambda step: int(step.name))
  return None


def _context() -> ts.Context:
  # No cache: every box is read or written once. Files are synced together before the folder is renamed.
  return ts.Context(
    {"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False, "file_io_concurrency": {"limit": 4}}
  )


def _spec(item: Path, path: str, driver: str = "zarr") -> dict[str, Any]:
  return {"driver": driver, "kvstore": {"driver": "ocdbt", "base": f"file://{item.absolute()}/", "path": path + "/"}}


def chunk_shape(weight: Weight, itemsize: int) -> tuple[int, ...]:
  """Small parameters are one chunk; others are cut by layer and expert, then in halves along the longest axis."""
  chunk = list(weight.shape)
  if math.prod(chunk) * itemsize > _CHUNK_BYTES:
    chunk[: weight.stacked] = [1] * weight.stacked
  while math.prod(chunk) * itemsize > _CHUNK_BYTES:
    halvable = [axis for axis, size in enumerate(chunk) if size % 2 == 0]
    if not halvable:
      break
    axis = max(halvable, key=lambda axis: chunk[axis])
    chunk[axis] //= 2
  return tuple(chunk)


class ParameterSource:
  """Parameters out of our own checkpoint folder: the item `parameters`, written by us or by orbax.

  `config.json` and the tokenizer lie beside it; for a run's step, in the stage's folder and in `<workdir>/tokenizer`.
  Raises WeightsError that lists missing and unexpected arrays, or names the first of a wrong shape or dtype.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    stage = folder.absolute().parent.parent
    alone = (folder / "config.json").exists() or not (stage / "config.json").exists()
    self.config, self.written_config = read_config(folder if alone else stage)
    self.tokenizer_folder = folder if alone else stage.parent.parent / "tokenizer"
    item = folder / PARAMETERS
    try:
      metadata = json.loads((item / "_METADATA").read_text())
      found = {".".join(key["key"] for key in leaf["key_metadata"]) for leaf in metadata["tree_metadata"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise WeightsError(f"{item / '_METADATA'}: corrupt: {type(error).__name__}: {error}") from None
    expected = {weight.path: weight for weight in weights(self.config)}
    for kind, names in (("missing", sorted(set(expected) - found)), ("unexpected", sorted(found - set(expected)))):
      if names:
        raise WeightsError(f"{item}: {len(names)} {kind} arrays: {abbreviate(names)}")
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    context = _context()
    self._arrays: dict[str, Any] = {}
    for path, weight in expected.items():
      try:
        array = ts.open(_spec(item, path, driver), open=True, read=True, context=context).result()
      except ValueError as error:
        raise WeightsError(f"{item}: {path} cannot be opened: {_one_line(error)}") from None
      if array.shape != weight.shape:
        raise WeightsError(
          f"{item}: {path} has shape {list(array.shape)}, expected {list(weight.shape)} by config.json"
        )
      if array.dtype.numpy_dtype not in DTYPES.values():
        raise WeightsError(f"{item}: {path} has dtype {array.dtype.name}, expected one of {', '.join(DTYPES)}")
      self._arrays[path] = array

  def dtype(self, weight: Weight) -> np.dtype:
    return self._arrays[weight.path].dtype.numpy_dtype

  def multiples(self, weight: Weight) -> tuple[int, ...]:
    return tuple(self._arrays[weight.path].chunk_layout.read_chunk.shape)

  def read(self, weight: Weight, box: Box, dtype: np.dtype) -> np.ndarray:
    """Our array's box, cast to `dtype`."""
    try:
      array = self._arrays[weight.path][box].read().result()
    except ValueError as error:
      raise WeightsError(f"{self.folder / PARAMETERS}: {weight.path} cannot be read: {_one_line(error)}") from None
    return array.astype(dtype, copy=False)

  def close(self) -> None:
    self._arrays.clear()


class ParameterSink:
  """Writes parameters as the item `parameters` of `folder`, which exists.

  Args:
    dtypes: path -> dtype on disk.
  """

  def __init__(self, folder: Path, config: ModelConfig, dtypes: dict[str, np.dtype]):
    self._item = folder / PARAMETERS
    self._item.mkdir()
    self._started = time.time_ns()
    self._dtypes = dtypes
    self._shapes = {weight.path: weight.shape for weight in weights(config)}
    self._context = _context()
    self._open: tuple[str, Any] = ("", None)

  def write(self, weight: Weight, box: Box, array: np.ndarray) -> None:
    if self._open[0] != weight.path:
      dtype = self._dtypes[weight.path]
      spec = _spec(self._item, weight.path)
      spec["metadata"] = {"shape": weight.shape, "chunks": chunk_shape(weight, dtype.itemsize), "compressor": None}
      spec["dtype"] = dtype.name
      # Zeros are data: without this a chunk of zeros would be left out.
      spec["store_data_equal_to_fill_value"] = True
      self._open = (weight.path, ts.open(spec, create=True, context=self._context).result())
    self._open[1][box].write(array).result()

  def close(self) -> None:
    """Writes what orbax needs to know of the arrays."""
    leaves = {}
    for path, shape in self._shapes.items():
      keys = path.split(".")
      value = {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": list(shape)}
      leaves[str(tuple(keys))] = {
        "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
        "value_metadata": value,
      }
    metadata = {
      "tree_metadata": leaves,
      "use_ocdbt": True,
      "use_zarr3": False,
      "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
    }
    (self._item / "_METADATA").write_text(json.dumps(metadata))
    times = {"init_timestamp_nsecs": self._started, "commit_timestamp_nsecs": time.time_ns()}
    status = {"item_handlers": _HANDLER, "metrics": {}, "performance_metrics": {}, "custom_metadata": {}} | times
    (self._item / "_CHECKPOINT_METADATA").write_text(json.dumps(status))


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())[:300]
