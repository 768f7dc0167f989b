"""Where the time of a run goes: every second of the process is of one kind, and kept in WORKDIR/goodput.jsonl."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from absl import logging

from qwen3_jax.observability.half_lines import end_half_line
from qwen3_jax.workdir import Workdir

# What one second of a run can be spent on. Of a step: waiting for its batch, which is rollouts where the model writes
# it, waiting for the devices' results, and everything else that the host does meanwhile.
INPUT_KINDS = ("input", "rollouts")
STEP_KINDS = (*INPUT_KINDS, "host", "device")
KINDS = (*STEP_KINDS, "start", "compile", "data", "checkpoint", "evaluation", "other")
# They begin and end many times a second: a line for each would be more record than run.
_FREQUENT = (*STEP_KINDS, "other")
_LONGEST_SECONDS, _SHORTEST_SECONDS = 60.0, 0.5  # between two lines of frequent kinds
_NOTHING_SECONDS = 0.01  # likewise of rare ones: less goes into the next line


def path_in(workdir: Workdir) -> Path:
  """The record of a work directory."""
  return workdir.path / "goodput.jsonl"


class TimeRecord:
  """The time of one start of a run, by kind; use it as a context manager, in the thread that trains.

  The first process appends to the record: that it started, that a stage begins after some step, seconds by kind with
  the steps that were done in them, that it ended. Lines come when something rare begins or ends (compilation, a
  checkpoint, an evaluation), and else after a thousandth of the time since the start, at least every minute. A killed
  run so loses at most that, or the rare thing under way, which then counts as down time. A record that cannot be
  written is given up with a warning; the run goes on.

  Args:
    workdir: of the run.
    started: Unix seconds at which the process began; now, unless given.
  """

  def __init__(self, workdir: Workdir, started: float | None = None):
    now = time.time()
    started = now if started is None else started
    self._seconds: dict[str, float] = collections.defaultdict(float)
    self._kind, self._since = "start", time.monotonic() - max(now - started, 0.0)
    self._began = self._since
    self._stage: str | None = None
    self._step = 0
    self._file: int | None = None
    self._path = path_in(workdir)
    if jax.process_index() == 0:
      self._open()
    self._written = dict(self._seconds)
    self._written_at, self._written_step = self._since, 0
    self._append({"event": "start"}, started)

  def __enter__(self) -> TimeRecord:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    """After an error, what follows until the next start is down time."""
    self.flush()
    self._append({"event": "end", "finished": error is None})
    if self._file is not None:
      os.close(self._file)
      self._file = None

  @contextlib.contextmanager
  def spend(self, kind: str) -> Iterator[None]:
    """The time within is of `kind`, but for what is spent on another within it."""
    outer = self._switch(kind)
    try:
      yield
    finally:
      self._switch(outer)

  @contextlib.contextmanager
  def stage(self, name: str, step: int) -> Iterator[None]:
    """The steps within are those of a stage, which goes on after `step`: 0 at its start."""
    self.flush()
    self._stage, self._step, self._written_step = name, step, step
    self._append({"event": "stage", "stage": name, "step": step})
    try:
      yield
    finally:
      self.flush()
      self._stage = None

  def step_done(self, step: int) -> None:
    """Notes that the stage's `step` has finished."""
    self._step = step

  def seconds(self, *kinds: str) -> float:
    """Spent on any of `kinds` so far."""
    self._count()
    return sum(self._seconds[kind] for kind in kinds)

  def flush(self) -> None:
    """Writes what was spent since the last line."""
    self._count()
    spent = {kind: value - self._written.get(kind, 0.0) for kind, value in self._seconds.items()}
    spent = {kind: round(value, 4) for kind, value in spent.items() if value > 5e-5}
    if spent or self._step != self._written_step:
      line: dict[str, Any] = {"event": "spent", "seconds": spent}
      if self._stage is not None:
        line |= {"stage": self._stage, "steps": [self._written_step, self._step]}
      self._append(line)
    self._written, self._written_at, self._written_step = dict(self._seconds), self._since, self._step

  def _switch(self, kind: str) -> str:
    """Returns the kind before."""
    self._count()
    outer = self._kind
    if kind != outer and self._is_due({kind, outer}):
      self.flush()
    self._kind = kind
    return outer

  def _count(self) -> None:
    now = time.monotonic()
    self._seconds[self._kind] += now - self._since
    self._since = now

  def _is_due(self, kinds: set[str]) -> bool:
    """Whether a change between `kinds` is worth a line."""
    if kinds - set(_FREQUENT):
      interval = 0.0 if self._step != self._written_step else _NOTHING_SECONDS
    else:
      interval = min(max((self._since - self._began) / 1000, _SHORTEST_SECONDS), _LONGEST_SECONDS)
    return self._since - self._written_at > interval

  def _open(self) -> None:
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      end_half_line(self._path)
      self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
      self._give_up(error)

  def _append(self, line: dict[str, Any], at: float | None = None) -> None:
    if self._file is None:
      return
    line = {"time": round(time.time() if at is None else at, 3)} | line
    try:
      os.write(self._file, (json.dumps(line) + "\n").encode())
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error: OSError) -> None:
    logging.warning("%s: %s; where the time of this run goes is not recorded any more", self._path, error.strerror)
    if self._file is not None:
      os.close(self._file)
      self._file = None
