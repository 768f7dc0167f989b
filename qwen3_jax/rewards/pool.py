"""Pool: judges in processes that are killed when they hang, crash or take too much memory."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from typing import Any

_START_SECONDS = 120.0  # to start a process and import what it needs, on a busy machine
_MEMORY = 2 << 30  # bytes of address space of one verifier, libraries included


class Pool:
  """Up to `workers` processes at a time, started when needed. Any number of threads may call `run`.

  Args:
    module: its `prepare(payload)` makes a process ready, its `judge(payload) -> dict` runs in a child of it.
    memory: bytes of address space that a child may take, what it starts with included.
  """

  def __init__(self, module: str, *, workers: int = 2, memory: int = _MEMORY):
    if workers < 1:
      raise ValueError(f"workers={workers}, expected at least 1")
    self._module = module
    self._memory = memory
    self._free: queue.LifoQueue[_Nursery] = queue.LifoQueue()  # the last used first: others need not start
    self._all = [_Nursery() for _ in range(workers)]
    for nursery in self._all:
      self._free.put(nursery)
    atexit.register(self.close)

  def run(self, payload: Any, seconds: float) -> dict[str, Any]:
    """What `judge` returns, or {"failed": why it returned nothing}: it raised, hung, crashed or grew too large."""
    nursery = self._free.get()
    try:
      request = {"module": self._module, "payload": payload, "seconds": seconds, "memory": self._memory}
      for _ in range(2):  # once more if something killed the process itself
        reply = nursery.ask(request, seconds + _START_SECONDS)
        if reply is not None:
          return reply
      return {"failed": "the verifiers' process died twice"}
    finally:
      self._free.put(nursery)

  def close(self) -> None:
    """Ends all processes. The pool can be used again."""
    for nursery in self._all:
      nursery.close()
    atexit.unregister(self.close)


class _Nursery:
  """A process that runs `nursery.py`."""

  def __init__(self) -> None:
    self._process: subprocess.Popen[bytes] | None = None
    self._lock = threading.Lock()

  def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
    """None if the process died or said nothing in time; it is gone then."""
    with self._lock:
      process = self._process
      if process is None or process.poll() is not None:
        process = self._process = _start()
      assert process.stdin is not None and process.stdout is not None
      try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        line = _line(process.stdout.fileno(), time.monotonic() + seconds)
        return json.loads(line)
      except (OSError, ValueError):
        self._end()
        return None

  def close(self) -> None:
    with self._lock:
      self._end()

  def _end(self) -> None:
    process, self._process = self._process, None
    if process is None:
      return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
      if stream is not None:
        with contextlib.suppress(OSError):
          stream.close()


def _start() -> subprocess.Popen[bytes]:
  paths = [path or os.getcwd() for path in sys.path]
  threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # a fork loses them
  return subprocess.Popen(
    [sys.executable, "-m", "qwen3_jax.rewards.nursery"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
    start_new_session=True,  # Ctrl-C ends the run in its own order
  )


def _line(descriptor: int, deadline: float) -> bytes:
  """Raises OSError at the deadline or when the stream ends first."""
  data = b""
  while not data.endswith(b"\n"):
    left = deadline - time.monotonic()
    if left <= 0 or not select.select([descriptor], [], [], left)[0]:
      raise TimeoutError
    piece = os.read(descriptor, 1 << 16)
    if not piece:
      raise BrokenPipeError("the process ended")
    data += piece
  return data
