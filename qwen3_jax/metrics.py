"""Scalars and samples of a stage to JSON lines and TensorBoard; the peak speed that MFU is measured against."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from qwen3_jax.observability.trackers import Tracker
from qwen3_jax.workdir import Workdir, json_safe, read_json_lines, replace_file

_EVENTS_FLUSH_SECONDS = 10  # TensorBoard's file is synced to disk at a flush: too slow for every line
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


# Dense bfloat16 FLOP/s of what JAX calls one device, by the start of `device_kind`; the first match counts.
# TPU: cloud.google.com/tpu/docs, the page of each version. v2, v3 and TPU7x show each half of a chip as a device.
# GPU: NVIDIA's data sheets, without sparsity.
_PEAK_FLOPS = (
  ("TPU v2", 45e12 / 2),
  ("TPU v3", 123e12 / 2),
  ("TPU v4", 275e12),
  ("TPU v5 lite", 197e12),
  ("TPU v5e", 197e12),
  ("TPU v5", 459e12),
  ("TPU v6", 918e12),
  ("TPU7", 2307e12 / 2),
  ("NVIDIA A100", 312e12),
  ("NVIDIA H100 PCIe", 756e12),
  ("NVIDIA H100 NVL", 835e12),
  ("NVIDIA H100", 989.4e12),
  ("NVIDIA GH200", 989.4e12),
  ("NVIDIA H200", 989.4e12),
  ("NVIDIA B200", 2250e12),
  ("NVIDIA GB200", 2500e12),
)


class MetricWriter:
  """Appends to a stage's metrics.jsonl and samples.jsonl and to its TensorBoard folder.

  A metrics line is {"step", "time" (Unix seconds), name: number, ...}; a number that is not finite is written as the
  string "NaN", "Infinity" or "-Infinity". Every line is handed to the operating system before the call returns, so a
  killed run loses at most the line being written; the next run drops that half line. Only the first process writes.

  Args:
    workdir: where to.
    stage: whose metrics.
    trackers: get the scalars, too; closed with the writer.
  """

  def __init__(self, workdir: Workdir, stage: str, trackers: Sequence[Tracker] = ()):
    self._trackers = trackers
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    self._tensorboard_folder = workdir.tensorboard(stage)
    self._events: EventsWriter | None = None  # opened at the first write: a file per run, none for a run without steps
    self._purge_from = 0
    self._flushed = 0.0
    self._paths = workdir.metrics(stage), workdir.samples(stage)
    self._open()

  def truncate_after(self, step: int) -> None:
    """Forgets what was written after `step`, from which the run now continues. Step 0 forgets everything."""
    if not self._writes:
      return
    self._close_files()
    for path in self._paths:
      _rewrite(path, [line for line in _lines(path) if 0 < step >= line["step"]])
    self._purge_from = step + 1 if step else 0
    self._open()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """One line of metrics; integers stay integers. Raises OSError that names the file when the disk is full."""
    if not self._writes:
      return
    values = {name: value if isinstance(value, int) else float(value) for name, value in scalars.items()}
    now = time.time()
    _append(self._metrics, {"step": step, "time": round(now, 3)} | values)
    if self._events is None:
      self._tensorboard_folder.mkdir(parents=True, exist_ok=True)
      # The suffix keeps two files apart that were opened within one second.
      self._events = EventsWriter(str(self._tensorboard_folder / "events"), f".{os.getpid()}.{self._purge_from}")
      start = SessionLog(status=SessionLog.START)  # TensorBoard then drops older events from this step on
      self._events.write_event(Event(wall_time=now, step=self._purge_from, session_log=start))
    summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
    self._events.write_event(Event(wall_time=now, step=step, summary=summary))
    if now - self._flushed > _EVENTS_FLUSH_SECONDS:
      self._events.flush()
      self._flushed = now
    for tracker in self._trackers:
      tracker.write(step, values)

  def write_sample(self, step: int, prompt: str, text: str) -> None:
    """One line of samples: what the model wrote after `prompt`."""
    if self._writes:
      _append(self._samples, {"step": step, "prompt": prompt, "text": text})

  def close(self) -> None:
    for tracker in self._trackers:
      tracker.close()
    if self._writes:
      self._close_files()

  def __enter__(self) -> MetricWriter:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
  ) -> None:
    """Closes; after an error, a full disk for instance, another one of the same cause does not take its place."""
    with contextlib.nullcontext() if error is None else contextlib.suppress(OSError):
      self.close()

  def _close_files(self) -> None:
    self._metrics.close()
    self._samples.close()
    if self._events is not None:
      self._events.close()
      self._events = None

  def _open(self) -> None:
    for path in self._paths:
      path.parent.mkdir(parents=True, exist_ok=True)
      if path.exists() and not path.read_bytes().endswith(b"\n"):
        _rewrite(path, _lines(path))
    self._metrics, self._samples = (open(path, "a", encoding="utf-8") for path in self._paths)


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl in order, as numbers; damaged and half-written lines are left out."""
  lines = []
  for line in _lines(path):
    line = {name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
    lines.append({name: value for name, value in line.items() if isinstance(value, int | float)})
  return lines


def read_samples(path: Path) -> list[dict[str, Any]]:
  """The lines of a samples.jsonl in order; damaged and half-written lines are left out."""
  return [line for line in _lines(path) if isinstance(line.get("prompt"), str) and isinstance(line.get("text"), str)]


def _lines(path: Path) -> list[dict[str, Any]]:
  return [line for line in read_json_lines(path) if isinstance(line.get("step"), int)]


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
  replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _append(file: TextIO, line: dict[str, Any]) -> None:
  try:
    file.write(json.dumps(json_safe(line), ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()
  except OSError as error:
    raise OSError(error.errno, error.strerror, file.name) from None


def device_peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of one device: bfloat16 by the maker's figures, or what a CPU reaches in a float32 matmul, measured.

  All devices of a CPU platform share the processor, so the figure is that of all of them together.
  None for a device that is not in the table.
  """
  if device.platform == "cpu":
    return _measured_matmul_flops(device)
  return next((peak for kind, peak in _PEAK_FLOPS if device.device_kind.startswith(kind)), None)


@functools.cache
def _measured_matmul_flops(device: jax.Device, size: int = 1024, seconds: float = 0.2) -> float:
  """The best of the [size, size] float32 products that fit in `seconds`."""
  a = jax.device_put(jnp.ones((size, size), jnp.float32), device)
  multiply = jax.jit(jnp.matmul)
  multiply(a, a).block_until_ready()
  best, end = float("inf"), time.perf_counter() + seconds
  while (start := time.perf_counter()) < end or best == float("inf"):
    multiply(a, a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
