"""Child processes that are told what this process is told, and that never outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import types
from collections.abc import Callable, Sequence
from typing import Any

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Children:
  """Starts processes; use it as a context manager, in the main thread.

  Within it, SIGTERM and SIGINT are passed on, and a second one kills. At its end every child is killed.
  """

  def __init__(self) -> None:
    self._all: list[subprocess.Popen[bytes]] = []
    self.signals: list[int] = []  # that came
    self._restore: list[tuple[int, Any]] = []

  def __enter__(self) -> Children:
    # Before the first child, so that no signal finds it alone.
    self._restore = [(number, signal.signal(number, self._pass_on)) for number in (signal.SIGTERM, signal.SIGINT)]
    return self

  def __exit__(self, *exception: object) -> None:
    for child in self._all:
      kill(child)
      child.wait()
    for number, handler in self._restore:
      signal.signal(number, handler)

  def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """The process of `command`; `options` are those of subprocess.Popen. Raises OSError as it does."""
    child = subprocess.Popen(
      command,
      start_new_session=True,  # the terminal's Ctrl-C comes to us alone, who pass it on once
      preexec_fn=_die_with(os.getpid()),
      **options,
    )
    self._all.append(child)
    return child

  def _pass_on(self, number: int, frame: types.FrameType | None) -> None:
    for child in self._all:
      if self.signals:
        kill(child)
      elif child.poll() is None:
        child.send_signal(number)
    self.signals.append(number)


def kill(child: subprocess.Popen[bytes]) -> None:
  """With its own children."""
  if child.poll() is None:
    try:
      os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass


def _die_with(parent: int) -> Callable[[], None]:
  """For a child to call: the kernel kills it when its parent dies, however that is."""
  prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up here: little is safe between fork and exec

  def ask() -> None:
    if prctl is not None:
      prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
      if os.getppid() != parent:  # it died before the call
        os._exit(1)

  return ask
