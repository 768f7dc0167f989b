"""Starts one run as several processes on this machine, each with its own devices:

  python -m launch.local_processes --processes=4 -- \\
    python -m qwen3_jax.main --config=experiments/miniature.py --workdir=DIR --config.cpu_devices=2

They find each other through JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Every line of theirs is
printed behind the process's number. SIGTERM and SIGINT are passed on, a second one kills. The exit status is that of
the process that failed first; the others then have `--grace_seconds` to end by themselves. However this program ends,
it leaves no process behind.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from launch.children import Children, kill


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m launch.local_processes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--processes", type=int, required=True, help="how many")
  parser.add_argument("--grace_seconds", type=float, default=60.0, help="after a failure; default: %(default)s")
  parser.add_argument("command", nargs="+", help="of each process; write -- before it")
  arguments = parser.parse_args()
  if arguments.processes < 1:
    parser.error(f"--processes={arguments.processes}: expected at least 1")
  return run(arguments.command, arguments.processes, arguments.grace_seconds)


def run(command: Sequence[str], processes: int, grace_seconds: float) -> int:
  """Runs `command` as that many processes to their end; returns the exit status."""
  address = f"localhost:{_free_port()}"
  started: list[subprocess.Popen[bytes]] = []
  try:
    with Children() as children:
      for index in range(processes):
        started.append(_start(children, command, address, processes, index))
      if children.signals:  # one came between two starts, and not to all
        return 128 + children.signals[0]
      readers = [_Reader(index, child) for index, child in enumerate(started)]
      status = _wait(started, grace_seconds)
      for reader in readers:
        reader.join(timeout=5.0)  # a grandchild may hold the pipe open
      return status
  except OSError as error:
    print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
    return 127


def _start(
  children: Children, command: Sequence[str], address: str, processes: int, index: int
) -> subprocess.Popen[bytes]:
  environment = os.environ | {
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(processes),
    "JAX_PROCESS_ID": str(index),
    "PYTHONUNBUFFERED": "1",
  }
  return children.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def _wait(children: list[subprocess.Popen[bytes]], grace_seconds: float) -> int:
  """Until all have ended; the exit status of the first that failed, after which the rest is killed in time."""
  status, deadline = 0, float("inf")
  while True:
    running = _running(children)
    if not status and any(child.returncode for child in children):
      time.sleep(0.2)  # the others may have followed at once
      running = _running(children)
      failed = {index: child.returncode for index, child in enumerate(children) if child.returncode}
      first = min(failed, key=lambda index: (failed[index] > 0, index))  # who was killed did not follow anyone
      code = failed[first]
      status, deadline = 128 - code if code < 0 else code, time.monotonic() + grace_seconds
      how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
      wait = f"; the others have {grace_seconds:g} s to end" if running else ""
      _say(f"process {first} {how}{wait}")
    if not running:
      return status
    if time.monotonic() > deadline:
      _say(f"killing {len(running)} that still run")
      deadline = float("inf")
      for child in running:
        kill(child)
    time.sleep(0.1)


def _running(children: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
  return [child for child in children if child.poll() is None]


def _say(text: str) -> None:
  _write(sys.stderr.buffer, f"local_processes: {text}\n".encode())


class _Reader(threading.Thread):
  """Prints the lines of one process as they come."""

  def __init__(self, index: int, child: subprocess.Popen[bytes]):
    super().__init__(name=f"output of process {index}", daemon=True)
    assert child.stdout is not None
    self._prefix, self._lines = f"[{index}] ".encode(), child.stdout
    self.start()

  def run(self) -> None:
    for line in self._lines:
      _write(sys.stdout.buffer, self._prefix + line.rstrip(b"\n") + b"\n")


_printing = threading.Lock()


def _write(stream: IO[bytes], line: bytes) -> None:
  with _printing:
    stream.write(line)
    stream.flush()


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


if __name__ == "__main__":
  sys.exit(main())
