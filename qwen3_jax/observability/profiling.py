"""Profiler traces of some steps, where xprof and TensorBoard's profile plugin find them."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging


def parse_steps(text: str) -> tuple[int, int]:
  """ "10,20" as (10, 20). Raises ValueError."""
  match = re.fullmatch(r"(\d+),(\d+)", text)
  if match is None or not 1 <= int(match[1]) <= int(match[2]):
    raise ValueError(f"{text!r}: expected FIRST,LAST with 1 <= FIRST <= LAST, e.g. 10,20")
  return int(match[1]), int(match[2])


class Profiler:
  """Traces steps `first` to `last`, both included, of the first stage that comes to one of them.

  Every process writes its own file, FOLDER/plugins/profile/steps-FIRST-LAST/HOST-PROCESS.xplane.pb; the folder's name
  has the steps that were traced. The devices are waited for at either end, so that the trace holds these steps whole.
  A trace that fails is given up with a warning.

  Args:
    steps: first and last, counted from 1 in the stage; None traces nothing.
  """

  def __init__(self, steps: tuple[int, int] | None = None):
    self._steps = steps  # None once they are traced
    self._folder = Path()
    self._say: Callable[[str], None] = print
    self._first = self._last = 0  # of the trace under way; 0: none is

  @contextlib.contextmanager
  def stage(self, folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Traces within go to `folder`, one of TensorBoard's; one that is under way at the end is written, too."""
    self._folder, self._say = folder, say
    try:
      yield
    finally:
      if self._first:
        self._stop()

  def before(self, step: int, previous: Any) -> None:
    """To be called before `step` is dispatched; `previous` are arrays that the step before makes."""
    if self._steps is None or self._first or not self._steps[0] <= step <= self._steps[1]:
      return
    jax.block_until_ready(previous)
    try:
      jax.profiler.start_trace(self._raw)
    except RuntimeError as error:
      logging.warning("profile_steps: %s", error)
      self._steps = None
      return
    self._first = self._last = step

  def after(self, step: int, results: Any) -> None:
    """To be called once `step` is dispatched; `results` are arrays that it makes."""
    if not self._first or self._steps is None:
      return
    self._last = step
    if step == self._steps[1]:
      jax.block_until_ready(results)
      self._stop()

  @property
  def _raw(self) -> Path:
    """Where JAX writes: processes of one host would overwrite each other's file. Not there until the trace ends."""
    return self._folder / f".profile-{jax.process_index()}"

  def _stop(self) -> None:
    run = self._folder / "plugins" / "profile" / f"steps-{self._first}-{self._last}"
    first, self._first, self._steps = self._first, 0, None
    try:
      jax.profiler.stop_trace()
      run.mkdir(parents=True, exist_ok=True)
      for trace in self._raw.glob("plugins/profile/*/*.xplane.pb"):
        trace.replace(run / f"{socket.gethostname()}-{jax.process_index()}.xplane.pb")
    except (RuntimeError, OSError) as error:
      logging.warning("profile_steps: the trace is not written: %s", error)
      return
    finally:
      shutil.rmtree(self._raw, ignore_errors=True)
    self._say(f"profile of steps {first} to {self._last}: {run}")
