"""Experiments run as a user runs them, and what they leave: shared by the benchmarks of miniatures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen3_jax.metrics import read_metrics
from qwen3_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
DEMO_FORMS = ("", "quick")
DEMO_LOG_EVERY = 10  # as `make demo` does


def demo(form: str) -> str:
  """The experiment of `make demo`, in one of its forms."""
  return ":".join(filter(None, ("miniature.py", form)))


def command(module: str, *arguments: str) -> None:
  """`python -m module arguments`; its output is dropped. Raises CalledProcessError."""
  subprocess.run([sys.executable, "-m", module, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def training(experiment: str, workdir: Path, seed: int, log_every: int = 1) -> list[str]:
  """The arguments of qwen3_jax.main; `experiment` as in "miniature_reasoning.py:size=large"."""
  config = [f"--config={ROOT}/experiments/{experiment}", f"--config.seed={seed}", f"--config.log_every={log_every}"]
  return [*config, f"--workdir={workdir}"]


def train(experiment: str, workdir: Path, seed: int, log_every: int = 1) -> None:
  """Runs it to its end. Raises CalledProcessError."""
  command("qwen3_jax.main", *training(experiment, workdir, seed, log_every))


def metrics(workdir: Path, stage: str) -> list[dict[str, Any]]:
  """A stage's lines of metrics."""
  return read_metrics(Workdir(workdir).metrics(stage))
