"""The system calls that a program may not make, as a seccomp filter (Linux, seccomp_filter.rst).

Runs in the launcher: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from qwen3_jax.sandbox import libc

# Numbers on x86_64 and on aarch64, -1 where there is none. In five groups: communication and memory that outlives its
# process; other processes; file systems and namespaces; the kernel's own state; large parts of the kernel that programs
# of this kind have no use for, where its faults were found.
DENIED = {
  "socket": (41, 198),
  "memfd_create": (319, 279),
  "memfd_secret": (447, 447),
  "shmget": (29, 194),
  "shmat": (30, 196),
  "shmctl": (31, 195),
  "msgget": (68, 186),
  "semget": (64, 190),
  "mq_open": (240, 180),
  "ptrace": (101, 117),
  "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271),
  "process_madvise": (440, 440),
  "pidfd_getfd": (438, 438),
  "kcmp": (312, 272),
  "move_pages": (279, 239),
  "migrate_pages": (256, 238),
  "mount": (165, 40),
  "umount2": (166, 39),
  "pivot_root": (155, 41),
  "chroot": (161, 51),
  "unshare": (272, 97),
  "setns": (308, 268),
  "open_tree": (428, 428),
  "move_mount": (429, 429),
  "fsopen": (430, 430),
  "fsconfig": (431, 431),
  "fsmount": (432, 432),
  "fspick": (433, 433),
  "mount_setattr": (442, 442),
  "name_to_handle_at": (303, 264),
  "open_by_handle_at": (304, 265),
  "quotactl": (179, 60),
  "quotactl_fd": (443, 443),
  "swapon": (167, 224),
  "swapoff": (168, 225),
  "reboot": (169, 142),
  "sethostname": (170, 161),
  "setdomainname": (171, 162),
  "settimeofday": (164, 170),
  "clock_settime": (227, 112),
  "clock_adjtime": (305, 266),
  "adjtimex": (159, 171),
  "acct": (163, 89),
  "syslog": (103, 116),
  "vhangup": (153, 58),
  "init_module": (175, 105),
  "finit_module": (313, 273),
  "delete_module": (176, 106),
  "kexec_load": (246, 104),
  "kexec_file_load": (320, 294),
  "iopl": (172, -1),
  "ioperm": (173, -1),
  "modify_ldt": (154, -1),
  "uselib": (134, -1),
  "personality": (135, 92),
  "add_key": (248, 217),
  "request_key": (249, 218),
  "keyctl": (250, 219),
  "bpf": (321, 280),
  "perf_event_open": (298, 241),
  "userfaultfd": (323, 282),
  "io_uring_setup": (425, 425),
  "io_uring_enter": (426, 426),
  "io_uring_register": (427, 427),
  "fanotify_init": (300, 262),
  "mbind": (237, 235),
  "set_mempolicy": (238, 237),
  "remap_file_pages": (216, 234),
  "vmsplice": (278, 75),
  "lookup_dcookie": (212, 18),
}
# Calls that are denied by their arguments.
BY_ARGUMENT = {"clone": (56, 220), "clone3": (435, 435), "mmap": (9, 222), "socketpair": (53, 199)}
LAST = 450  # set_mempolicy_home_node: later calls are unknown here, and the C library does without them

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NAMESPACES = (
  libc.CLONE_NEWNS | libc.CLONE_NEWCGROUP | libc.CLONE_NEWUTS | libc.CLONE_NEWIPC
  | libc.CLONE_NEWUSER | libc.CLONE_NEWPID | libc.CLONE_NEWNET
)  # fmt: skip
_AF_UNIX = 1
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED (also a bit of MAP_SHARED_VALIDATE), MAP_ANONYMOUS

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_ABOVE, _IF_ANY_BIT = 0x15, 0x25, 0x45
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # places in struct seccomp_data


def filter_of(machine: str) -> bytes:
  """The filter as instructions for `machine`, a name as of `uname -m`.

  Raises OSError (ENOTSUP) for a machine whose call numbers are not known.
  """
  if machine not in _ARCHITECTURES:
    raise OSError(errno.ENOTSUP, f"machine {machine!r} has no table, expected one of {list(_ARCHITECTURES)}", "seccomp")
  column, architecture = _ARCHITECTURES[machine]
  argument = lambda index: _ARGUMENTS + 8 * index  # its low half: both machines are little-endian
  refuse = _ERRNO | errno.EPERM
  # Every `(test, value)` skips the next instruction where it does not hold.
  code: list[tuple[int, int, int, int]] = [
    (_LOAD, 0, 0, _ARCHITECTURE),
    (_IF_EQUAL, 1, 0, architecture),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, _NUMBER),
    (_IF_ABOVE, 0, 1, LAST),  # on x86_64 also every call of the x32 kind
    (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    (_IF_EQUAL, 0, 1, BY_ARGUMENT["clone3"][column]),  # its flags lie in memory; the C library then takes clone
    (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
  ]
  for number in [numbers[column] for numbers in DENIED.values() if numbers[column] >= 0]:
    code += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
  checks = {
    "clone": [(_LOAD, 0, 0, argument(0)), (_IF_ANY_BIT, 0, 1, _NAMESPACES)],
    "socketpair": [(_LOAD, 0, 0, argument(0)), (_IF_EQUAL, 1, 0, _AF_UNIX)],
    "mmap": [
      (_LOAD, 0, 0, argument(3)),
      (_AND, 0, 0, _SHARED_ANONYMOUS),
      (_IF_EQUAL, 0, 1, _SHARED_ANONYMOUS),
    ],
  }
  for name, check in checks.items():
    block = [*check, (_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    code += [(_IF_EQUAL, 0, len(block), BY_ARGUMENT[name][column]), *block]
  code.append((_RETURN, 0, 0, _ALLOW))
  return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class _Program(ctypes.Structure):
  _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install() -> None:
  """For this process and all that it starts, for ever; forbids new privileges, too. Raises OSError."""
  instructions = filter_of(os.uname().machine)
  program = _Program(len(instructions) // 8, instructions)
  libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
  libc.prctl(libc.PR_SET_SECCOMP, libc.SECCOMP_MODE_FILTER, ctypes.addressof(program))
