"""StepTimes: seconds of a step, and which share of them was spent on what."""

from __future__ import annotations

from qwen3_jax.observability.time_record import INPUT_KINDS, STEP_KINDS, TimeRecord


class StepTimes:
  """Means since the last look, in seconds. `data_wait`, `host` and `device` add up to `seconds`.

  The host runs ahead of the devices, so a look may find several steps done since the one before: the mean over them is
  what a step takes. Compilation, checkpoints and evaluations are no part of it.

  Args:
    record: of what the time was spent on.
    step: the last one that is done.
  """

  def __init__(self, record: TimeRecord, step: int):
    self._record, self._step = record, step
    self._before = self._spent()
    self.seconds = self.data_wait = self.host = self.device = 0.0

  def look(self, done: int) -> None:
    """Means over the steps up to `done`; those of the look before where no step was done since."""
    steps = done - self._step
    if not steps:
      return
    now = self._spent()
    self.data_wait, self.host, self.device = ((b - a) / steps for a, b in zip(self._before, now))
    self.seconds = max(self.data_wait + self.host + self.device, 1e-9)
    self._before, self._step = now, done

  def _spent(self) -> tuple[float, ...]:
    rest = (kind for kind in STEP_KINDS if kind not in INPUT_KINDS)
    return self._record.seconds(*INPUT_KINDS), *(self._record.seconds(kind) for kind in rest)
