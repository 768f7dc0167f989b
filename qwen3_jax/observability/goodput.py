"""Goodput: the productive share of a run's wall time, over all of its starts.

The terms are those of the library ml-goodput-measurement (AI-Hypercomputer), which MaxText uses: time of steps whose
results are kept is productive, the rest is sorted by its cause. That library keeps its record in Google Cloud Logging
and nowhere else; this one is a file of the work directory (`time_record.py`) and needs no network.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

from qwen3_jax.number_text import duration
from qwen3_jax.observability.time_record import path_in
from qwen3_jax.workdir import Workdir, read_json_lines

PRODUCTIVE = ("steps", "rollouts")
# "steps": host and devices at work on steps; "rollouts": the model writes what stages of kind rl and distill learn
# from; "input": waiting for other batches; "start": of a process or a stage, with what is read to continue; "lost":
# whatever was done after the checkpoint from which the next start went on; "down": from the last sign of a start that
# did not finish to the next one.
KINDS = (*PRODUCTIVE, "input", "start", "compile", "data", "checkpoint", "evaluation", "other", "lost", "down")
_AS_STEPS = ("host", "device")
_NAMES = {"input": "waiting for input", "lost": "lost work", "down": "down time"}  # the others speak for themselves
_REPEATED = (*PRODUCTIVE, "input", "checkpoint", "evaluation")  # after a resume, what was done later is done again


@dataclasses.dataclass(frozen=True)
class Goodput:
  """Where the wall time of a run went."""

  seconds: dict[str, float]  # by KINDS, all of them
  starts: int  # of the command; 0: nothing is recorded
  lost_steps: int  # done, and done again

  @property
  def total(self) -> float:
    """Seconds from the first start to the last line, without the time after a finished one."""
    return sum(self.seconds.values())

  @property
  def productive(self) -> float:
    """Seconds."""
    return sum(self.seconds[kind] for kind in PRODUCTIVE)

  @property
  def share(self) -> float:
    """Productive share of the total, 0 to 1; NaN where nothing is recorded."""
    return self.productive / self.total if self.total else math.nan


@dataclasses.dataclass
class _Work:
  """A line of a stage: steps `first` + 1 to `last`, or what was done at `last`, and its seconds."""

  first: int
  last: int
  seconds: dict[str, float]

  def lose_after(self, step: int) -> tuple[float, int]:
    """Forgets what was done after `step`; returns its seconds and steps."""
    if self.last <= step:
      return 0.0, 0
    kept = max(step, self.first)
    share = (self.last - kept) / (self.last - self.first) if self.last > self.first else 1.0
    lost = 0.0
    for kind in _REPEATED:
      part = share * self.seconds.get(kind, 0.0)
      if part:
        self.seconds[kind] -= part
        lost += part
    steps, self.last = self.last - kept, kept
    return lost, steps


def goodput(workdir: Workdir) -> Goodput:
  """Of all starts of a run so far; a line that a kill cut short is left out."""
  seconds = dict.fromkeys(KINDS, 0.0)
  work: dict[str, list[_Work]] = collections.defaultdict(list)
  starts = lost_steps = 0
  last: float | None = None  # time of the line before, None after a start that finished
  for line in read_json_lines(path_in(workdir)):
    match line:
      case {"event": "start", "time": time}:
        starts += 1
        if last is not None:
          seconds["down"] += max(time - last, 0.0)
      case {"event": "stage", "stage": stage, "step": step}:
        for part in work[stage]:
          lost, steps = part.lose_after(step)
          seconds["lost"] += lost
          lost_steps += steps
      case {"event": "spent", "seconds": spent, "stage": stage, "steps": [first, until]}:
        work[stage].append(_Work(first, until, _by_kind(spent)))
      case {"event": "spent", "seconds": spent}:
        for kind, value in _by_kind(spent).items():
          seconds[kind] += value
    last = None if line.get("finished") else line.get("time", last)
  for parts in work.values():
    for part in parts:
      for kind, value in part.seconds.items():
        seconds[kind] += value
  return Goodput(seconds, starts, lost_steps)


def summary(found: Goodput) -> str:
  """In a line for people: the share, and what most of the rest was."""
  if not found.total:
    return "goodput: nothing is recorded"
  rest = sorted(((value, kind) for kind, value in found.seconds.items() if kind not in PRODUCTIVE), reverse=True)
  most = [(_NAMES.get(kind, kind), value) for value, kind in rest if value >= 0.01 * found.total]
  shown = ", ".join(f"{name} {duration(value)}" for name, value in most)
  line = f"goodput {found.share:.0%} of {duration(found.total)}"
  return f"{line}; {shown}" if shown else line


def _by_kind(spent: dict[str, Any]) -> dict[str, float]:
  """Of KINDS."""
  seconds: dict[str, float] = collections.defaultdict(float)
  for kind, value in spent.items():
    kind = "steps" if kind in _AS_STEPS else kind
    seconds[kind if kind in KINDS else "other"] += value
  return dict(seconds)
