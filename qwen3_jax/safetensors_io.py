"""Safetensors files, read and written piece by piece with positioned reads and writes, never mapped nor held whole.

A file is: uint64 length of the header, the header (JSON: name -> dtype, shape, data_offsets), the tensors' bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_PAGE_BYTES = 4096  # the system reads at least so much, so a shorter run saves nothing
_BLOCK_BYTES = 16 << 20


class WeightsError(ValueError):
  """A checkpoint that cannot be read or written: one line that names the file and the tensor."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor lies."""

  file: Path
  dtype: str  # as the header spells it
  shape: tuple[int, ...]
  offset: int  # of its first byte in the file


def read_header(file: Path) -> dict[str, Tensor]:
  """The tensors of one file. Raises WeightsError unless header and file size agree."""
  size = file.stat().st_size
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
      raise WeightsError(f"{file}: not a safetensors file or truncated: a header of {length} bytes in a file of {size}")
    try:
      header = json.loads(stream.read(length))
      header.pop("__metadata__", None)
      tensors = {name: _tensor(file, 8 + length, entry) for name, entry in header.items()}
      end = max((8 + length + entry["data_offsets"][1] for entry in header.values()), default=8 + length)
    except WeightsError:
      raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
      raise WeightsError(f"{file}: corrupt header: {type(error).__name__}: {error}") from None
  if end != size:
    state = "truncated" if end > size else "too long"
    raise WeightsError(f"{file}: {state}: the header describes {end} bytes, the file has {size}")
  return tensors


def _tensor(file: Path, data_start: int, entry: Mapping[str, Any]) -> Tensor:
  begin, end = entry["data_offsets"]
  shape = tuple(int(n) for n in entry["shape"])
  if min(begin, *shape, 0) < 0 or end < begin:
    raise ValueError(f"negative size in {dict(entry)}")
  dtype = entry["dtype"]
  if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
    raise ValueError(f"{end - begin} bytes for {dtype} {list(shape)}")
  return Tensor(file, dtype, shape, data_start + begin)


def has_safetensors(folder: Path) -> bool:
  return any(folder.glob("*.safetensors")) or (folder / INDEX_FILE).exists()


class SafetensorsFolder:
  """The tensors of a folder: one `model.safetensors`, or the shards that its index lists."""

  def __init__(self, folder: Path):
    self.folder = folder
    self._files: dict[Path, int] = {}
    if (folder / INDEX_FILE).exists():
      self.tensors = self._indexed()
    elif (folder / SINGLE_FILE).exists():
      self.tensors = read_header(folder / SINGLE_FILE)
    elif any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
      raise WeightsError(f"{folder}: pickled PyTorch weights are not read, as they can run code; expected safetensors")
    else:
      raise WeightsError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} found")

  def _indexed(self) -> dict[str, Tensor]:
    index = self.folder / INDEX_FILE
    try:
      weight_map = {name: str(shard) for name, shard in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
      raise WeightsError(f"{index}: corrupt index: {type(error).__name__}: {error}") from None
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name]
    if outside:
      raise WeightsError(f"{index}: points outside the folder: {abbreviate(outside)}")
    missing = [name for name in names if not (self.folder / name).exists()]
    if missing:
      raise WeightsError(f"{index}: {len(missing)} of {len(names)} shards are missing: {abbreviate(missing)}")
    headers = {name: read_header(self.folder / name) for name in names}
    absent = [f"{name} ({shard})" for name, shard in weight_map.items() if name not in headers[shard]]
    if absent:
      raise WeightsError(f"{index}: listed tensors are not in their shard: {abbreviate(absent)}")
    return {name: headers[shard][name] for name, shard in weight_map.items()}

  def read(self, name: str, ranges: tuple[slice, ...]) -> np.ndarray:
    """The part of a one- or two-dimensional tensor that `ranges` selects (start and stop given); reads little else."""
    tensor = self.tensors[name]
    dtype = DTYPES[tensor.dtype]
    (first, last), *columns = [(part.start, part.stop) for part in ranges]
    row = math.prod(tensor.shape[1:]) * dtype.itemsize
    out = np.empty([part.stop - part.start for part in ranges], dtype)
    start = tensor.offset + first * row
    if not columns or columns[0] == (0, tensor.shape[1]):
      self._fill(tensor.file, out, start)
    elif out.shape[1] * dtype.itemsize >= _PAGE_BYTES:
      for i in range(last - first):
        self._fill(tensor.file, out[i], start + i * row + columns[0][0] * dtype.itemsize)
    else:
      step = max(1, _BLOCK_BYTES // row)
      for i in range(0, last - first, step):
        rows = np.empty((min(step, last - first - i), tensor.shape[1]), dtype)
        self._fill(tensor.file, rows, start + i * row)
        out[i : i + step] = rows[:, columns[0][0] : columns[0][1]]
    return out

  def _fill(self, file: Path, out: np.ndarray, offset: int) -> None:
    if file not in self._files:
      self._files[file] = os.open(file, os.O_RDONLY)
    view = out.view(np.uint8).reshape(-1).data
    while view:
      count = os.preadv(self._files[file], [view], offset)
      if not count:
        raise WeightsError(f"{file}: truncated while it was being read")
      view, offset = view[count:], offset + count

  def close(self) -> None:
    while self._files:
      os.close(self._files.popitem()[1])


class SafetensorsWriter:
  """Lays out all files first, then takes the tensors' rows in any order.

  Args:
    folder: an existing folder.
    tensors: name -> (dtype, shape), in the order of writing.
    max_shard_bytes: a new shard starts before this is passed; one larger tensor still makes a shard of its own.
  """

  def __init__(self, folder: Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], max_shard_bytes: int):
    shards: list[list[str]] = [[]]
    filled = total = 0
    for name, (dtype, shape) in tensors.items():
      size = math.prod(shape) * dtype.itemsize
      if shards[-1] and filled + size > max_shard_bytes:
        shards.append([])
        filled = 0
      shards[-1].append(name)
      filled += size
      total += size
    self._descriptors: dict[Path, int] = {}
    self.tensors: dict[str, Tensor] = {}
    self._missing = total
    for i, names in enumerate(shards):
      file = folder / (SINGLE_FILE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors")
      self._lay_out(file, {name: tensors[name] for name in names})
    if len(shards) > 1:
      weight_map = {name: tensor.file.name for name, tensor in self.tensors.items()}
      index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
      (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")

  def _lay_out(self, file: Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # Wider types first, so that every tensor is aligned to its own type.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
      end = offset + math.prod(shape) * dtype.itemsize
      header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
      offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    self._descriptors[file] = descriptor
    os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
    os.ftruncate(descriptor, 8 + len(text) + offset)
    for name, (dtype, shape) in tensors.items():
      begin = header[name]["data_offsets"][0]
      self.tensors[name] = Tensor(file, _DTYPE_NAMES[dtype], shape, 8 + len(text) + begin)

  def write(self, name: str, row: int, rows: np.ndarray) -> None:
    """Writes `rows` (all columns, the tensor's dtype) from row `row` on."""
    tensor = self.tensors[name]
    offset = tensor.offset + row * math.prod(tensor.shape[1:]) * rows.itemsize
    view = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
    self._missing -= len(view)
    while view:
      count = os.pwrite(self._descriptors[tensor.file], view, offset)
      view, offset = view[count:], offset + count

  def close(self) -> None:
    """Closes the files; raises WeightsError if some bytes were never written."""
    while self._descriptors:
      os.close(self._descriptors.popitem()[1])
    if self._missing:
      raise WeightsError(f"{self._missing} bytes of the tensors were not written")


def abbreviate(names: list[str], limit: int = 20) -> str:
  """All names, or the first `limit` and how many more there are."""
  more = f" and {len(names) - limit} more" if len(names) > limit else ""
  return ", ".join(names[:limit]) + more
