"""Whole runs of `python -m qwen3_jax.main` for tests: real processes, `:tiny` experiments made smaller still."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.metrics import read_metrics
from qwen3_jax.workdir import Workdir
from tests import fast_compiling

ROOT = Path(__file__).parents[1]
TIMEOUT = 900  # seconds; only a hang takes so long, even on a crowded machine
STEPS = {"s1": 8, "s2": 5, "s3": 5}
LENGTHS = {"s1": 32, "s2": 32, "s3": 64}
TOKENS_PER_STEP = 128
VOCABULARY = 512
# What a clock says, not the computation.
TIMINGS = {"time", "tokens_per_second", "step_seconds", "data_wait_seconds", "host_seconds", "device_seconds", "mfu"}
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv[1]),))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_CORPORA = ("web", "multilingual", "code", "stem", "pdf", "synthetic", "reasoning", "long")


@dataclasses.dataclass(frozen=True)
class Material:
  """What all runs of a test session share, so that each only trains."""

  folder: Path

  @property
  def corpus(self) -> Path:
    return self.folder / "corpus.jsonl"

  @property
  def tokenizer(self) -> Path:
    return self.folder / "tokenizer"

  @property
  def cache(self) -> Path:
    return self.folder / "data"

  @property
  def environment(self) -> dict[str, str]:
    """Of a run: one CPU; programs compiled once in a test session."""
    return os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": fast_compiling.FLAGS,
      "JAX_COMPILATION_CACHE_DIR": str(fast_compiling.RUNS_CACHE),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
      "PYTHONPATH": str(ROOT),
    }

  def overrides(self, **changes: Any) -> list[str]:
    """`key=value` that make an experiment's tiny form smaller; `changes` write a dot as two underscores."""
    settings: dict[str, Any] = {
      "log_every": 1,
      "checkpoint.every": 3,
      "tokenizer.path": self.tokenizer,
      "data.cache": self.cache,
      "model.vocab_size": VOCABULARY,
      "model.num_layers": 1,
      "model.hidden_size": 32,
      "model.intermediate_size": 32,
      "model.num_heads": 2,
      "model.num_kv_heads": 1,
    }
    settings |= {f"data.corpora.{name}.source": f"jsonl:{self.corpus}" for name in _CORPORA}
    for stage, steps in STEPS.items():
      settings |= {
        f"stages.{stage}.sequence_length": LENGTHS[stage],
        f"stages.{stage}.batch_size": TOKENS_PER_STEP // LENGTHS[stage],
        f"stages.{stage}.tokens": steps * TOKENS_PER_STEP + 5,  # the rest is less than a step
        f"stages.{stage}.evaluate_every": 4,
        f"stages.{stage}.sample_prompts": (),
        f"stages.{stage}.optimizer.warmup_steps": 2 if stage == "s1" else 0,
      }
    settings["stages.s3.length_buckets"] = ((32, 64, 0.75), (8, 32, 0.25))
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()]

  def command(self, experiment: str, workdir: Path, **changes: Any) -> list[str]:
    name, _, arguments = experiment.partition(":")
    config = f"--config={ROOT / 'experiments' / name}.py:{','.join(filter(None, ('tiny', arguments)))}"
    overrides = [f"--config.{override}" for override in self.overrides(**changes)]
    return [sys.executable, "-m", "qwen3_jax.main", config, f"--workdir={workdir}", *overrides]

  def start(self, experiment: str, workdir: Path, *, max_file_bytes: int = 0, **changes: Any) -> subprocess.Popen[str]:
    """The process of a run, its output in pipes; with `max_file_bytes`, no file that it writes can be longer."""
    command = self.command(experiment, workdir, **changes)
    if max_file_bytes:
      command[1:1] = ["-c", _LIMITED, str(max_file_bytes)]
    return self.process(command)

  def start_tiny(
    self, experiment: str, workdir: Path, changes: dict[str, Any], processes: int = 1
  ) -> subprocess.Popen[str]:
    """A run of an experiment's tiny form as it is, but for `changes` of its keys; its output in pipes."""
    config = f"--config={ROOT / 'experiments' / experiment}.py:tiny"
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    command = [sys.executable, "-m", "qwen3_jax.main", config, f"--workdir={workdir}", *overrides]
    return self.process(several(processes, command))

  def process(self, command: list[str]) -> subprocess.Popen[str]:
    """Of any command, its output in pipes."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)

  def run(self, experiment: str, workdir: Path, **options: Any) -> Ended:
    return finish(self.start(experiment, workdir, **options))


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a run ended."""

  code: int
  out: str
  err: str

  def check(self) -> Ended:
    """Fails unless the run ended well."""
    assert self.code == 0, self.out + self.err
    assert "Traceback" not in self.err
    return self

  @property
  def error(self) -> str:
    """The one line that a run which cannot go on ends with."""
    assert self.code == 1, self.out + self.err
    assert "Traceback" not in self.err, self.err
    lines = self.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], self.err
    return lines[-1]


def several(processes: int, command: list[str]) -> list[str]:
  """`command` as so many processes of one run; one needs no launcher."""
  if processes == 1:
    return command
  launcher = [sys.executable, "-m", "launch.local_processes", f"--processes={processes}", "--"]
  return [*launcher, *command, "--heartbeat_seconds=10"]


def finish(process: subprocess.Popen) -> Ended:
  try:
    out, err = process.communicate(timeout=TIMEOUT)
  except BaseException:
    process.kill()
    raise
  return Ended(process.returncode, out, err)


def make_material(folder: Path) -> Material:
  """300 KB of Python sources, cut in documents of some 2,000 characters, and a tokenizer trained on them."""
  material = Material(folder)
  texts: list[str] = []
  for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
    text = file.read_text(encoding="utf-8", errors="replace")
    texts += [text[start : start + 2000] for start in range(0, len(text), 2000)]
    if len(texts) > 150:
      break
  write_jsonl(material.corpus, texts)
  train_sentencepiece(texts, material.tokenizer / "tokenizer.model", VOCABULARY)
  return material


def write_jsonl(path: Path, texts: Sequence[str]) -> None:
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def curves(workdir: Path, stages: Sequence[str] = tuple(STEPS)) -> dict[str, list[dict[str, Any]]]:
  """Every line of every stage's metrics, without what depends on the clock."""
  lines = {stage: read_metrics(Workdir(workdir).metrics(stage)) for stage in stages}
  return {
    stage: [{key: value for key, value in line.items() if key not in TIMINGS} for line in of_stage]
    for stage, of_stage in lines.items()
  }


def series(workdir: Path, stage: str, metric: str) -> dict[int, float]:
  """Step -> value. Fails where a step was written twice."""
  pairs = [(line["step"], line[metric]) for line in curves(workdir, [stage])[stage] if metric in line]
  assert len(dict(pairs)) == len(pairs)
  return dict(pairs)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> bool:
  """Whether `condition` came true while `process` ran."""
  deadline = time.monotonic() + TIMEOUT
  while time.monotonic() < deadline:
    if condition():
      return True
    if process.poll() is not None:
      return False
    time.sleep(0.001)
  process.kill()
  raise TimeoutError(f"no progress in {TIMEOUT} seconds")
