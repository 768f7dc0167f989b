"""Stacks of all Python threads of a process, in WORKDIR/logs/stacks-PROCESS.txt: when it hangs, and on SIGUSR1."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging

from qwen3_jax.workdir import Workdir

_MOST_BYTES = 16 << 20  # a longer file is set aside when the next run starts


def path_in(workdir: Workdir) -> Path:
  """This process's file."""
  return workdir.path / "logs" / f"stacks-{jax.process_index()}.txt"


def dump(workdir: Workdir, why: str) -> Path | None:
  """Appends the stacks under a line with the time and `why`; the file, or None with a warning if it cannot be written.

  A thread that waits in C++ shows where Python called it.
  """
  path = path_in(workdir)
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  names = ", ".join(f"0x{thread.ident or 0:016x} {thread.name}" for thread in threading.enumerate())
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
      file.write(f"=== {now}, process {os.getpid()}: {why}\nThreads: {names}\n")
      file.flush()
      faulthandler.dump_traceback(file, all_threads=True)
  except OSError as error:
    logging.warning("%s: %s; the stacks are not written", path, error.strerror)
    return None
  return path


@contextlib.contextmanager
def on_signal(workdir: Workdir) -> Iterator[None]:
  """Within, SIGUSR1 appends the stacks and nothing else happens; it does so too while Python is stuck in C++."""
  path = path_in(workdir)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _MOST_BYTES:
      path.replace(path.with_suffix(".old.txt"))
    file = open(path, "a", encoding="utf-8")
  except OSError as error:
    logging.warning("%s: %s; SIGUSR1 is not answered", path, error.strerror)
    yield
    return
  with file:
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    try:
      yield
    finally:
      faulthandler.unregister(signal.SIGUSR1)
