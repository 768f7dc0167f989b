"""Training steps on the CPU: tokens a second beside eager PyTorch and MaxText, and the share of the machine's float32
matmul peak.

  python benchmarks/train_cpu.py [--shapes=0.5M,1.5M,12M] [--repeats=9] [--devices=N] [--maxtext-python=PATH]
                                 [--json=FILE]

Each repeat times a large matmul, our step, PyTorch's and MaxText's, one after the other; medians. All steps use every
core of the process's affinity, the same shapes, AdamW and clipping. Ours and PyTorch's compute in float32 on the same
batch; beside MaxText ours computes in bfloat16, too. Ours is data-parallel over one virtual device a core, unless
--devices says otherwise (config.cpu_devices in a run). A row holds one document, so PyTorch may use its causal kernel
without a mask; ours masks by segment all the same.
PyTorch is measured where it is installed.

MaxText is measured where --maxtext-python names the interpreter of an environment that has it (Python 3.12: `pip
install maxtext` and what its import asks for); its process waits while the others are timed. It computes in bfloat16,
its default and its faster one. Without the flag it has one row, at 12M, of its default as recorded on another 2-core
machine.

Run it on an idle machine: PyTorch's threads wait for each other after every operation and lose far more than ours when
something else wants a core. `taskset -c 0` compares one core each, which other work disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from random_batch import random_batch

from qwen3_jax.allocator import keep_freed_memory
from qwen3_jax.batch import Batch
from qwen3_jax.config import pretrain_stage
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.flops import training_flops_per_token
from qwen3_jax.objectives.next_token import next_token
from qwen3_jax.optimizer import make_optimizer
from qwen3_jax.sharding import batch_sharding, make_mesh, replicated
from qwen3_jax.train_state import create_state
from qwen3_jax.train_step import make_train_step

TORCH_BAR, TORCH_AIM, PEAK_BAR = 0.9, 1.2, 0.5
MAXTEXT_TOKENS_PER_SECOND, MAXTEXT_BAR = 370.0, 5.0  # 12M, the upper end of what was recorded
LOSS_MARGIN = {"ours": 0.5, "ours in bfloat16": 0.5, "torch": 0.5, "maxtext": 1.5}  # of the first loss around ln(V)
WARM_UP = 2  # steps until the heap has its size
PEAK_SIZE = 2048  # of the square matrices whose product measures the machine
KEPT_MEMORY = {  # keep_freed_memory() for another process; PyTorch shares ours
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_TOP_PAD_": str(64 * 2**20),
}
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Shape:
  model: ModelConfig
  batch_size: int
  sequence_length: int

  @property
  def tokens(self) -> int:
    return self.batch_size * self.sequence_length


def shape(name: str, V: int, L: int, D: int, F: int, N: int, K: int, H: int, B: int, T: int) -> Shape:
  model = ModelConfig(
    name=name,
    vocab_size=V,
    num_layers=L,
    hidden_size=D,
    intermediate_size=F,
    num_heads=N,
    num_kv_heads=K,
    head_dim=H,
    unroll_layers=True,
  )
  return Shape(model, B, T)


SHAPES = {
  "0.5M": shape("0.5M", V=512, L=4, D=96, F=288, N=4, K=2, H=24, B=32, T=128),
  "1.5M": shape("1.5M", V=512, L=5, D=160, F=448, N=5, K=1, H=32, B=32, T=128),
  "12M": shape("12M", V=32_768, L=4, D=256, F=768, N=8, K=4, H=64, B=8, T=512),
}


def our_step(shape: Shape, batch: Batch, dtype: str = "float32") -> Callable[[], float]:
  model = shape.model.replace(dtype=dtype)
  options = pretrain_stage().optimizer
  optimizer = make_optimizer(options)
  mesh = make_mesh({"data": -1})
  state = create_state(model, optimizer, mesh, seed=0)
  step = jax.jit(make_train_step(model, next_token(), optimizer, clip_norm=options.clip_norm), donate_argnums=0)
  on_devices = jax.device_put(batch, batch_sharding(mesh))
  learning_rate = jax.device_put(jnp.float32(options.peak_lr), replicated(mesh))

  def run() -> float:
    nonlocal state
    with jax.set_mesh(mesh):
      state, metrics = step(state, on_devices, learning_rate)
    return float(metrics["loss"])

  return run


def torch_step(shape: Shape, batch: Batch, threads: int) -> Callable[[], float] | None:
  """None where PyTorch is not installed."""
  try:
    import torch_qwen3
  except ModuleNotFoundError as error:
    if error.name != "torch":
      raise
    return None
  fields = {field.name: getattr(shape.model, field.name) for field in dataclasses.fields(torch_qwen3.Shape)}
  step = torch_qwen3.make_step(torch_qwen3.Shape(**fields), threads=threads, packed=False)
  return lambda: step(batch.tokens, batch.targets, batch.positions, batch.segment_ids)


def last_line(text: str) -> str:
  return "".join(text.strip().splitlines()[-1:])


def maxtext_version(python: Path) -> str:
  """Of the MaxText that this interpreter imports; ValueError where it is no interpreter or has none."""
  command = [str(python), "-c", "import importlib.metadata as metadata; print(metadata.version('maxtext'))"]
  try:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
  except OSError as error:
    raise ValueError(f"{python}: {error.strerror}") from error
  except subprocess.CalledProcessError as error:
    raise ValueError(f"{python}: {last_line(error.stderr) or error}") from error


@contextlib.contextmanager
def maxtext_step(python: Path, shape: Shape) -> Iterator[Callable[[], float]]:
  """MaxText's step, taken by a process that waits in between."""
  worker = Path(__file__).with_name("maxtext_worker.py")
  sizes = dataclasses.asdict(shape.model)
  sizes |= {"batch_size": shape.batch_size, "sequence_length": shape.sequence_length}
  command = [str(python), str(worker), json.dumps(sizes)]
  with (
    tempfile.TemporaryFile("w+", errors="replace") as log,
    subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      env=os.environ | KEPT_MEMORY,
      text=True,
    ) as process,
  ):
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def answer() -> Any:
      if not (line := answers.readline()):
        log.seek(0)
        raise RuntimeError(f"{worker.name} under {python} ended: {last_line(log.read())}")
      return json.loads(line)

    def run() -> float:
      print(file=requests, flush=True)
      return answer()

    parameters = answer()
    if parameters != shape.model.parameter_count():
      raise RuntimeError(f"MaxText has {parameters:,} parameters, we {shape.model.parameter_count():,}")
    yield run


def peak_matmul() -> Callable[[], float]:
  matrix = jnp.ones((PEAK_SIZE, PEAK_SIZE), jnp.float32)
  multiply = jax.jit(jnp.matmul)
  return lambda: float(multiply(matrix, matrix)[0, 0])


def seconds(run: Callable[[], float]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def measure(shape: Shape, repeats: int, threads: int, maxtext_python: Path | None) -> dict[str, Any]:
  """Median seconds of each contender by name, and how often XLA compiled after the first step."""
  batch = random_batch(shape.batch_size, shape.sequence_length, shape.model.vocab_size)
  runs = {"peak": peak_matmul(), "ours": our_step(shape, batch), "torch": torch_step(shape, batch, threads)}
  if maxtext_python is not None or shape.model.name == "12M":  # beside MaxText, measured or recorded
    runs["ours in bfloat16"] = our_step(shape, batch, "bfloat16")
  with contextlib.ExitStack() as stack:
    if maxtext_python is not None:
      runs["maxtext"] = stack.enter_context(maxtext_step(maxtext_python, shape))
    return time_in_turn(shape, {name: run for name, run in runs.items() if run is not None}, repeats)


class Compilations:
  """Counts the programs compiled since it was made."""

  def __init__(self) -> None:
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
    self.count += event == COMPILE_EVENT


def time_in_turn(shape: Shape, runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, Any]:
  losses = {name: run() for name, run in runs.items() if name != "peak"}
  print(f"{shape.model.name}: first losses", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
  for name, loss in losses.items():
    if abs(loss - np.log(shape.model.vocab_size)) > LOSS_MARGIN[name]:
      raise RuntimeError(f"first losses {losses}, expected ln({shape.model.vocab_size})")
  for run in runs.values():
    for _ in range(WARM_UP):
      run()
  compilations = Compilations()
  times: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      times[name].append(seconds(run))
      time.sleep(0.02)  # OpenMP's threads spin for a moment after their work
  return {name: statistics.median(samples) for name, samples in times.items()} | {"compilations": compilations.count}


def row(name: str, unit: str, ours: float, peer: float | None, peer_name: str, bar: float | None) -> dict[str, Any]:
  ratio = ours / peer if peer else None
  holds = None if bar is None or ratio is None else ratio >= bar
  peer_name = peer_name if peer else f"{peer_name}: missing"
  return {
    "name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": bar,
    "holds": holds,
  }  # fmt: skip


def rows_of(shape: Shape, times: dict[str, Any], maxtext: str | None) -> list[dict[str, Any]]:
  """`maxtext` is the version of the MaxText measured, if one was."""
  name, speed = shape.model.name, shape.tokens / times["ours"]
  peer = shape.tokens / times["torch"] if "torch" in times else None
  rows = [row(f"{name} train step", "tokens/s", speed, peer, "PyTorch eager", TORCH_BAR)]
  if "ours in bfloat16" in times:
    in_bfloat16 = shape.tokens / times["ours in bfloat16"]
    if maxtext is not None:
      peer = shape.tokens / times["maxtext"]
      rows.append(row(f"{name} in bfloat16", "tokens/s", in_bfloat16, peer, f"MaxText {maxtext}", None))
    if name == "12M":
      peer = MAXTEXT_TOKENS_PER_SECOND
      rows.append(row(f"{name} in bfloat16", "tokens/s", in_bfloat16, peer, "MaxText (recorded)", MAXTEXT_BAR))
  peak = 2 * PEAK_SIZE**3 / times["peak"] / 1e9
  achieved = speed * training_flops_per_token(shape.model, shape.sequence_length) / 1e9
  bar = PEAK_BAR if name == "12M" else None
  rows.append(row(f"{name} share of peak", "GFLOP/s", achieved, peak, "float32 matmul", bar))
  once = row(f"{name} compilations", "count", 1 + times["compilations"], 1.0, "one", None)
  rows.append(once | {"holds": times["compilations"] == 0})
  return rows


def print_table(rows: list[dict[str, Any]]) -> None:
  print(f"{'':22}{'unit':>10}{'ours':>10}{'peer':>10}{'ratio':>8}{'bar':>6}  holds  peer")
  text = lambda value, digits: "-" if value is None else f"{value:,.{digits}f}"
  for r in rows:
    cells = f"{text(r['ours'], 0):>10}{text(r['peer'], 0):>10}{text(r['ratio'], 2):>8}{text(r['bar'], 1):>6}"
    holds = {True: "yes", False: "NO", None: "-"}[r["holds"]]
    print(f"{r['name']:22}{r['unit']:>10}{cells}  {holds:5}  {r['peer_name']}")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--devices", type=int, help="virtual devices of ours; one a core unless given")
  parser.add_argument("--maxtext-python", type=Path, metavar="PATH", help="interpreter that has MaxText")
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  if os.getloadavg()[0] > 0.5:
    print(f"warning: load average {os.getloadavg()[0]:.1f} at the start; PyTorch suffers from it more than we do")
  names = arguments.shapes.split(",")
  if unknown := [name for name in names if name not in SHAPES]:
    parser.error(f"--shapes: unknown {', '.join(unknown)}; known: {', '.join(SHAPES)}")
  maxtext = None
  if arguments.maxtext_python is not None:
    try:
      maxtext = maxtext_version(arguments.maxtext_python)
    except ValueError as error:
      parser.error(f"--maxtext-python={error}")
  keep_freed_memory()
  threads = len(os.sched_getaffinity(0))
  devices = arguments.devices or threads
  if uneven := [name for name in names if SHAPES[name].batch_size % devices]:
    parser.error(f"--devices={devices} does not divide the batch of {', '.join(uneven)}")
  jax.config.update("jax_num_cpu_devices", devices)
  rows = []
  for name in names:
    times = measure(SHAPES[name], arguments.repeats, threads, arguments.maxtext_python)
    rows += rows_of(SHAPES[name], times, maxtext)
  machine = f"{platform.machine()}, {threads} cores, {devices} virtual devices, jax {jax.__version__}"
  print(machine)
  print_table(rows)
  print(f"Aim beside PyTorch: {TORCH_AIM}.")
  if arguments.json:
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
  sys.exit(any(r["holds"] is False for r in rows))


if __name__ == "__main__":
  main()
