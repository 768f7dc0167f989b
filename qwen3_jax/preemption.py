"""SIGTERM and SIGINT as a flag that is read between steps and between stages."""

from __future__ import annotations

import signal
import types

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
  """The run was asked to stop and has saved its state; the same command continues it."""


class PreemptionNotice:
  """Within the context, the first SIGTERM or SIGINT asks for a stop; a second one acts as usual.

  With several processes it is JAX's coordination service that watches for SIGTERM.
  """

  def __init__(self) -> None:
    self._received = False
    self._asked = 0
    self._previous: dict[int, object] = {}

  def __enter__(self) -> PreemptionNotice:
    for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exception: object) -> None:
    self._restore()

  def _receive(self, number: int, frame: types.FrameType | None) -> None:
    self._received = True
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    self._previous.clear()

  def requested(self) -> bool:
    """Whether to stop here. Several processes all ask at the same places, and get the same answers."""
    self._asked += 1
    if jax.process_count() > 1 and not self._received:
      self._received = multihost_utils.reached_preemption_sync_point(self._asked)
    return self._received
