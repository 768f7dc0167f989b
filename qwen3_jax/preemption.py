"""SIGTERM and SIGINT as a flag that is read between steps and between stages, in agreement over all processes."""

from __future__ import annotations

import os
import signal
import types

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
  """The run was asked to stop and has saved its state; the same command continues it."""


class PreemptionNotice:
  """Within the context, the first SIGTERM or SIGINT asks for a stop; a second one acts as usual.

  With several processes JAX watches for SIGTERM from its start on; one notice, to whichever process, stops all of them
  at the same step. Its coordination service tells the others and settles the step: until a notice comes, asking costs
  no message between processes and no work on the devices, as an all-reduce of flags would.
  """

  def __init__(self) -> None:
    self._received = False
    self._asked = 0
    self._previous: dict[int, object] = {}

  def __enter__(self) -> PreemptionNotice:
    alone = jax.process_count() == 1
    for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
      self._previous[number] = signal.signal(number, self._receive if alone else self._pass_on)
    return self

  def __exit__(self, *exception: object) -> None:
    self._restore()

  def _receive(self, number: int, frame: types.FrameType | None) -> None:
    self._received = True
    self._restore()

  def _pass_on(self, number: int, frame: types.FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
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
