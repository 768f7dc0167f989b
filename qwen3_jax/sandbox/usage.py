"""What a process and its descendants use, as /proc says.

Runs in the launcher: standard library only.
"""

from __future__ import annotations

import os

_MEMORY = (b"RssAnon:", b"RssShmem:", b"VmSwap:")


def check_available() -> None:
  """Raises OSError where /proc does not list children (CONFIG_PROC_CHILDREN)."""
  os.stat(f"/proc/self/task/{os.getpid()}/children")


def usage_below(ancestor: int) -> tuple[int, int]:
  """Threads and bytes of memory of all descendants of process `ancestor`.

  Pages that processes share count in each of them; pages of mapped files do not count.
  """
  threads = memory = 0
  waiting = _children(ancestor)[1]
  while waiting:
    process = waiting.pop()
    count, children = _children(process)
    threads += count
    memory += _memory(process)
    waiting += children
  return threads, memory


def _children(process: int) -> tuple[int, list[int]]:
  """Number of its threads, and processes that those started."""
  children: list[int] = []
  try:
    threads = os.listdir(f"/proc/{process}/task")
  except OSError:
    return 0, children  # it has ended
  for thread in threads:
    children += map(int, _read(f"/proc/{process}/task/{thread}/children").split())
  return len(threads), children


def _memory(process: int) -> int:
  lines = _read(f"/proc/{process}/status").splitlines()
  return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(_MEMORY))


def _read(path: str) -> bytes:
  try:
    file = os.open(path, os.O_RDONLY)
  except OSError:
    return b""
  try:
    return b"".join(iter(lambda: os.read(file, 65536), b""))
  except OSError:
    return b""
  finally:
    os.close(file)
