"""How this process gets memory from the system."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8


def keep_freed_memory() -> None:
  """Makes glibc keep what is freed. Call it before JAX runs anything on a CPU; elsewhere it does nothing of note.

  XLA on a CPU allocates its work buffer anew in every step. glibc would return it to the kernel each time and pay the
  page faults again: a third of the time of a small step.
  """
  _set(
    {
      _MMAP_MAX: 0,  # no separate mapping for large blocks
      _TRIM_THRESHOLD: 2**31 - 1,  # never give the top of the heap back
      _ARENA_MAX: 1,  # one heap for all threads
      _TOP_PAD: 64 * 2**20,  # grow in large steps
    }
  )


def return_freed_memory() -> None:
  """Makes glibc give back what is freed. Call it before the TPU compiler runs: its threads' heaps would add up."""
  _set({_ARENA_MAX: 1, _TRIM_THRESHOLD: 2**17, _MMAP_THRESHOLD: 2**17})


def _set(parameters: dict[int, int]) -> None:
  libc = ctypes.CDLL(None)
  if sys.platform == "linux" and hasattr(libc, "mallopt"):
    for parameter, value in parameters.items():
      libc.mallopt(parameter, value)
