"""What the first of several processes writes for all of them to read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import jax

from qwen3_jax.data.records import DataError
from qwen3_jax.distributed import on_first_process

_SEEN_WITHIN_SECONDS = 90  # NFS may remember for a minute that a file was not there


def write_for_all(path: Path, write: Callable[[], None]) -> None:
  """Process 0 makes `path` by `write()`, then every process sees it, if late, as a network file system may show it.

  Raises DataError where a process does not: its storage is another.
  """
  on_first_process(write)
  deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
  while not path.exists():
    if time.monotonic() > deadline:
      raise DataError(
        f"{path}: written by process 0, not seen by process {jax.process_index()} on {socket.gethostname()} within"
        f" {_SEEN_WITHIN_SECONDS} s; --workdir and data.cache must lie on storage that all processes share"
      )
    time.sleep(0.5)
