"""System calls that Python's `os` lacks. Each raises OSError, its file name being the call, where the kernel refuses.

Runs in the launcher: standard library only, and little of it, because every import delays every run.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_NOSUID = 2
_SYS_MOUNT_SETATTR = 442  # on every architecture
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, name: str) -> None:
  if result == -1:
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error), name)


def _syscall(name: str, number: int, *arguments: ctypes._SimpleCData | ctypes.Array | bytes) -> None:
  _check(_libc.syscall(ctypes.c_long(number), *arguments), name)


def unshare(flags: int, name: str) -> None:
  """`name`: what the error calls it."""
  _check(_libc.unshare(flags), f"unshare ({name})")


def prctl(option: int, value: int, second: int = 0) -> None:
  _check(_libc.prctl(option, *map(ctypes.c_ulong, (value, second, 0, 0))), f"prctl ({option})")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
  fields = [field.encode() or None for field in (source, target, kind)]
  _check(_libc.mount(*fields, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def unmount(target: str) -> None:
  """At once from sight; for good when nothing uses it."""
  _check(_libc.umount2(target.encode(), _MNT_DETACH), f"umount2 {target}")


def pivot_root(new: str, old: str) -> None:
  _syscall("pivot_root", _SYS_PIVOT_ROOT[os.uname().machine], new.encode(), old.encode())


def read_only_below(path: str) -> None:
  """Makes every mount from `path` on read-only, and its set-uid bits void."""
  attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
  _syscall(
    "mount_setattr",
    _SYS_MOUNT_SETATTR,
    ctypes.c_long(_AT_FDCWD),
    path.encode(),
    ctypes.c_long(_AT_RECURSIVE),
    attributes,
    ctypes.c_long(ctypes.sizeof(attributes)),
  )


def set_host_name(name: str) -> None:
  _check(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name.encode()))), "sethostname")
