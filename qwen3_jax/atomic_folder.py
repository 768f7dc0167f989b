"""A folder that appears under its name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from qwen3_jax.safetensors_io import WeightsError


def check_output(path: Path, needed_bytes: int) -> None:
  """Raises WeightsError if `path` holds anything, or if its file system lacks `needed_bytes`."""
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise WeightsError(f"{path}: already there and not empty; choose another output or remove it")
  parent = next(folder for folder in path.absolute().parents if folder.exists())
  free = shutil.disk_usage(parent).free
  if free < needed_bytes:
    raise WeightsError(f"{path}: needs {needed_bytes / 1e9:.1f} GB, {parent} has {free / 1e9:.1f} GB free")


@contextlib.contextmanager
def atomic_folder(path: Path, needed_bytes: int = 0) -> Iterator[Path]:
  """Yields a folder to fill beside `path`; synced to disk and renamed on success, removed on failure.

  A folder left by a killed run is replaced. Raises WeightsError as `check_output` does, and for a full disk.
  """
  partial = path.absolute().parent / f".{path.name}.partial"
  shutil.rmtree(partial, ignore_errors=True)
  check_output(path, needed_bytes)
  try:
    partial.mkdir(parents=True)
    yield partial
    _sync(partial)
    partial.rename(path)
    _sync_one(partial.parent)
  except OSError as error:
    shutil.rmtree(partial, ignore_errors=True)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise WeightsError(f"{path}: the disk filled up while writing; nothing was kept") from None
    raise
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _sync(folder: Path) -> None:
  for root, _, files in os.walk(folder):
    for name in files:
      _sync_one(Path(root, name))
    _sync_one(Path(root))


def _sync_one(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
