"""Scalars to JSON lines and TensorBoard, and the peak speed that MFU is measured against."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tensorboardX import SummaryWriter

from qwen3_jax.workdir import Workdir, read_json_lines

# Dense bf16 FLOP/s of one JAX device, from the vendors' data sheets; matched against the start of `device_kind`.
_PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5p": 459e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
  "TPU7x": 1153.5e12,  # a chip of 2,307 TFLOP/s is two devices
  "TPU v7": 1153.5e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}


class MetricWriter:
  """Writes a stage's metrics.jsonl, samples.jsonl and TensorBoard events; only process 0 writes.

  Values that are not finite become null in JSON.
  """

  def __init__(self, workdir: Workdir, stage: str):
    self._active = jax.process_index() == 0
    self._metrics, self._samples = workdir.metrics(stage), workdir.samples(stage)
    self._folder = workdir.tensorboard(stage)
    self._tensorboard: SummaryWriter | None = None
    if self._active:
      self._metrics.parent.mkdir(parents=True, exist_ok=True)
      self._folder.mkdir(parents=True, exist_ok=True)

  def truncate_after(self, step: int) -> None:
    """Drops what a run that did not get to save wrote after `step`, so that each step appears once."""
    if not self._active:
      return
    for path in (self._metrics, self._samples):
      _rewrite(path, [line for line in read_json_lines(path) if line.get("step", 0) <= step])
    self._tensorboard = SummaryWriter(str(self._folder), purge_step=step + 1)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """One line; a step may have several, with different names."""
    if not self._active:
      return
    finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
    _append(self._metrics, {"step": step, "time": time.time(), **finite})
    if self._tensorboard is None:
      self._tensorboard = SummaryWriter(str(self._folder))
    for name, value in scalars.items():
      self._tensorboard.add_scalar(name, value, step)

  def write_sample(self, step: int, prompt: str, text: str) -> None:
    """What the model wrote after `prompt` at this step."""
    if self._active:
      _append(self._samples, {"step": step, "prompt": prompt, "text": text})

  def close(self) -> None:
    if self._tensorboard is not None:
      self._tensorboard.close()


def _append(path: Path, value: dict[str, Any]) -> None:
  with open(path, "a", encoding="utf-8") as handle:
    handle.write(json.dumps(value, ensure_ascii=False) + "\n")


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
  temporary = path.with_name(f".{path.name}")
  with open(temporary, "w", encoding="utf-8") as handle:
    handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    handle.flush()
    os.fsync(handle.fileno())
  temporary.replace(path)


def device_peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of a device: bf16 from its data sheet; for a CPU, float32 as measured. None when unknown."""
  if device.platform == "cpu":
    return _measured_matmul_flops()
  kind = device.device_kind
  matches = [name for name in _PEAK_FLOPS if kind.startswith(name)]
  return _PEAK_FLOPS[max(matches, key=len)] if matches else None


@functools.cache
def _measured_matmul_flops(size: int = 1024, repeats: int = 12) -> float:
  """Best speed of a float32 matmul of all cores, in FLOP/s; takes about a third of a second."""
  device = jax.local_devices(backend="cpu")[0]
  with jax.default_device(device):
    x = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.dot)
    multiply(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
      started = time.perf_counter()
      multiply(x, x).block_until_ready()
      times.append(time.perf_counter() - started)
  return 2 * size**3 / min(times)
