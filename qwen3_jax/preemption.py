"""SIGTERM and SIGINT as a flag that the train loop reads between steps."""

from __future__ import annotations

import signal
import types

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
  """The run was asked to stop and has saved its state; the same command continues it."""


class PreemptionNotice:
  """Within the context, the first SIGTERM or SIGINT asks for a stop; a second one acts as usual."""

  def __init__(self) -> None:
    self._received = False
    self._previous: dict[int, object] = {}

  def __enter__(self) -> PreemptionNotice:
    for number in (signal.SIGTERM, signal.SIGINT):
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

  def requested(self, step: int) -> bool:
    """Whether to stop after `step`. With several processes, all agree on the step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._received
