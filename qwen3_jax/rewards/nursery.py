"""A process that judges each answer in a child of its own, which is killed when it takes too long or too much.

Children are forked after all imports, so that one costs some milliseconds. This module must not import jax: its
threads would be lost in children. Started by `pool.Pool`; requests and replies are lines of JSON on the standard
streams.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, BinaryIO

_LARGEST_REPLY = 1 << 20  # bytes
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


def main() -> None:
  """Serves requests {"module", "payload", "seconds", "memory"} until its input ends.

  `module.prepare(payload)` runs here, before each request and untimed, `module.judge(payload) -> dict` in a child.
  """
  replies = os.fdopen(os.dup(1), "wb")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no reply
  for line in sys.stdin.buffer:
    request = json.loads(line)
    try:
      module = importlib.import_module(request["module"])
      module.prepare(request["payload"])
    except Exception as error:
      reply = {"failed": f"{type(error).__name__}: {error}"}
    else:
      reply = _in_child(module, request, replies)
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _in_child(module: Any, request: dict[str, Any], replies: BinaryIO) -> dict[str, Any]:
  """What `module.judge` returns, or {"failed": why it does not}."""
  gc.freeze()  # a collection in the child would copy every page
  reading, writing = os.pipe()
  child = os.fork()
  if child == 0:
    for inherited in (reading, replies.fileno(), 0):  # the pool would not notice the end of this process
      os.close(inherited)
    _judge(module, request, writing)
  os.close(writing)
  try:
    with os.fdopen(reading, "rb", buffering=0) as pipe:
      data = _read(pipe, time.monotonic() + request["seconds"])
  finally:
    for kill in (os.killpg, os.kill):  # the group, should it have one already
      with contextlib.suppress(ProcessLookupError, PermissionError):
        kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
  if data is None:
    return {"failed": f"no verdict within {request['seconds']:g} s"}
  try:
    return json.loads(data)
  except ValueError:
    ending = os.waitstatus_to_exitcode(status)
    how = f"signal {signal.Signals(-ending).name}" if ending < 0 else f"exit code {ending}"
    return {"failed": f"the verifier's process ended with {how}"}


def _read(pipe: BinaryIO | Any, deadline: float) -> bytes | None:
  """All of it; None at the deadline."""
  data = b""
  while (left := deadline - time.monotonic()) > 0:
    if not select.select([pipe], [], [], left)[0]:
      return None
    piece = pipe.read(1 << 16)
    if not piece:
      return data
    data += piece
    if len(data) > _LARGEST_REPLY:
      return b""
  return None


def _judge(module: Any, request: dict[str, Any], writing: int) -> None:
  """Never returns."""
  code = 1
  try:
    os.setpgid(0, 0)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(request["seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
      reply = module.judge(request["payload"])
    except MemoryError:
      reply = {"failed": f"the verifier needs more than {request['memory'] >> 20} MiB"}
    except Exception as error:
      reply = {"failed": f"{type(error).__name__}: {error}"[:1000]}
    data = json.dumps(reply).encode()
    while data:
      data = data[os.write(writing, data) :]
    code = 0
  finally:
    os._exit(code)


if __name__ == "__main__":
  main()
