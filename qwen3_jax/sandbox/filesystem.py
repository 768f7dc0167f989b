"""The file system that a program sees: Python and its libraries, read-only, and a scratch directory in memory.

Runs in the launcher: standard library only.
"""

from __future__ import annotations

import os

from qwen3_jax.sandbox import libc

SCRATCH = "/scratch"
PROGRAM = "/program.py"
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")  # not /dev/zero: mapped as shared, it is memory that no one owns
_BASE = "/tmp"  # any directory; what lies in it is hidden in this mount namespace only
_OLD = "/old"
_EMPTY = "/empty"
_INODES = 4096  # files and directories in the scratch directory


def build(readable: dict[str, str], hidden: list[str], source: bytes, scratch_bytes: int, uid: int) -> None:
  """Makes this process' mount namespace such a file system.

  Nothing of the machine's own stays reachable, and what is written disappears with the namespace, however it ends.

  Args:
    readable: absolute paths of files and directories, each with where it really lies, free of symbolic links.
    hidden: directories in those that are to look empty.
    source: the program.
    scratch_bytes: room in the scratch directory.
    uid: owner of the scratch directory.

  Raises:
    OSError: the kernel refuses.
  """
  libc.mount("", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
  libc.mount("tmpfs", _BASE, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, f"mode=755,size={len(source) + 2**20}")
  os.mkdir(_BASE + _OLD)
  libc.pivot_root(_BASE, _BASE + _OLD)
  os.chdir("/")
  for directory in (SCRATCH, _EMPTY, "/dev"):
    os.mkdir(directory, 0o755)
  for path, source_path in [*readable.items(), *zip(DEVICES, DEVICES)]:
    _bind(_OLD + source_path, path)
  for path in hidden:
    libc.mount(_EMPTY, path, flags=libc.MS_BIND)
  os.symlink(SCRATCH, "/dev/shm")  # POSIX semaphores, which multiprocessing uses
  if not os.path.exists(_BASE):  # no interpreter lies in it
    os.symlink(SCRATCH, _BASE)
  with open(PROGRAM, "wb") as file:
    file.write(source)
  libc.unmount(_OLD)
  os.rmdir(_OLD)
  libc.read_only_below("/")
  flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
  owner = f"mode=700,uid={uid},gid={uid}"
  libc.mount("tmpfs", SCRATCH, "tmpfs", flags, f"{owner},size={scratch_bytes},nr_inodes={_INODES}")


def _bind(source: str, target: str) -> None:
  if os.path.exists(target):  # in a directory bound before
    return
  if os.path.isdir(source):
    os.makedirs(target, 0o755, exist_ok=True)
  else:
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT, 0o444))
  libc.mount(source, target, flags=libc.MS_BIND | libc.MS_REC)
