"""The filter, run by an interpreter of its own, against the kernel's headers."""

import re
import struct
from pathlib import Path

import pytest

from qwen3_jax.sandbox import seccomp

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
  "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
  "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # arm64 uses the generic numbers
}
MACHINES = list(AUDIT)


def decide(machine, number, *arguments, audit=None):
  """What the filter says of a call: classic BPF, as in the kernel's networking/filter.rst."""
  arguments = [*arguments, *[0] * (6 - len(arguments))]
  data = struct.pack("=iIQ6Q", number, AUDIT[machine] if audit is None else audit, 0, *arguments)
  code = list(struct.iter_unpack("=HBBI", seccomp.filter_of(machine)))
  position = accumulator = 0
  while True:
    operation, true, false, value = code[position]
    position += 1
    if operation == 0x20:
      (accumulator,) = struct.unpack_from("=I", data, value)
    elif operation == 0x54:
      accumulator &= value
    elif operation == 0x06:
      return value
    else:
      holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[operation]
      position += true if holds else false


def header_numbers(machine):
  """{name: number} of the kernel's calls."""
  header = HEADERS[machine]
  if not header.exists():
    pytest.skip(f"no {header} here")
  pairs = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", header.read_text(), re.MULTILINE)
  return {name: int(number) for name, number in pairs}


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers(machine):
  """Each denied call has the header's number; a call without one has none there."""
  numbers = header_numbers(machine)
  column = MACHINES.index(machine)
  table = {name: pair[column] for name, pair in {**seccomp.DENIED, **seccomp.BY_ARGUMENT}.items()}
  newest = max(numbers.values())
  expected = {name: numbers.get(name, -1) for name, number in table.items() if number <= newest}
  assert {name: table[name] for name in expected} == expected
  assert len(expected) > 60


@pytest.mark.parametrize("machine", MACHINES)
def test_decisions(machine):
  """Calls named in the table are refused, all others of the header allowed."""
  for name, number in header_numbers(machine).items():
    if name in seccomp.DENIED:
      assert decide(machine, number) == EPERM, name
    elif name not in ("clone3", "socketpair", "syscalls") and number <= seccomp.LAST:
      assert decide(machine, number) == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments(machine):
  number = {name: pair[MACHINES.index(machine)] for name, pair in seccomp.BY_ARGUMENT.items()}
  assert decide(machine, number["clone"], 0x01200011) == ALLOW  # fork
  assert decide(machine, number["clone"], 0x003D0F00) == ALLOW  # a thread
  for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    assert decide(machine, number["clone"], flag | 17) == EPERM
  assert decide(machine, number["clone3"]) == ENOSYS
  assert decide(machine, number["socketpair"], 1) == ALLOW
  assert decide(machine, number["socketpair"], 2) == EPERM
  mmap = lambda flags: decide(machine, number["mmap"], 0, 4096, 3, flags, 2**64 - 1)
  assert [mmap(flags) for flags in (0x22, 0x01, 0x02, 0x20022)] == [ALLOW] * 4
  assert [mmap(flags) for flags in (0x21, 0x23, 0x8021)] == [EPERM] * 3


@pytest.mark.parametrize("machine", MACHINES)
def test_other_conventions(machine):
  assert decide(machine, 0, audit=0x40000003) == KILL  # i386
  assert decide(machine, 0x40000000) == ENOSYS  # x32
  assert decide(machine, seccomp.LAST + 1) == ENOSYS


def test_unknown_machine():
  with pytest.raises(OSError, match=r"machine 'riscv64' has no table, expected one of \['x86_64', 'aarch64'\]"):
    seccomp.filter_of("riscv64")
