"""A run's work directory: where each thing lies, one run at a time, files that are never half-written."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("qwen3_jax", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class WorkdirError(RuntimeError):
  """The work directory cannot be used; the message says why."""


class Workdir:
  """Paths of a work directory, see docs/architecture.md. Use as a context manager to hold its lock."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(path).absolute()
    self._lock: int | None = None  # file descriptor

  def __fspath__(self) -> str:
    return str(self.path)

  def __str__(self) -> str:
    return str(self.path)

  @property
  def config(self) -> Path:
    return self.path / "config.json"

  @property
  def environment(self) -> Path:
    return self.path / "environment.json"

  @property
  def tokenizer(self) -> Path:
    return self.path / "tokenizer"

  @property
  def report(self) -> Path:
    return self.path / "report.html"

  def tensorboard(self, stage: str) -> Path:
    return self.path / "tensorboard" / stage

  def stage(self, stage: str) -> Path:
    return self.path / "stages" / stage

  def metrics(self, stage: str) -> Path:
    return self.stage(stage) / "metrics.jsonl"

  def samples(self, stage: str) -> Path:
    return self.stage(stage) / "samples.jsonl"

  def checkpoints(self, stage: str) -> Path:
    return self.stage(stage) / "checkpoints"

  def stages(self) -> list[str]:
    """Stages that have a folder, in the order in which they started."""
    folder = self.path / "stages"
    found = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return [entry.name for entry in sorted(found, key=lambda entry: (_started(entry), entry.name))]

  def is_done(self, stage: str) -> bool:
    return (self.stage(stage) / "DONE").exists()

  def done(self, stage: str) -> dict[str, Any] | None:
    """What `mark_done` wrote, None for a stage that has not finished."""
    return read_json(self.stage(stage) / "DONE") if self.is_done(stage) else None

  def mark_done(self, stage: str, step: int, **facts: Any) -> None:
    """The stage will be skipped from now on: call it once the last checkpoint is on disk."""
    write_json(self.stage(stage) / "DONE", {"step": step, **facts})

  def __enter__(self) -> Workdir:
    """Takes the lock, which the system releases when the process ends, however it ends.

    Raises WorkdirError when another process holds it or the folder cannot be written.
    """
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
      raise WorkdirError(f"workdir={self.path}: cannot be written ({error.strerror})") from error
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      holder = os.read(descriptor, 500).decode(errors="replace").strip() or "another process"
      os.close(descriptor)
      raise WorkdirError(f"workdir={self.path}: in use by {holder}; wait for it or give another --workdir") from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n".encode())
    self._lock = descriptor
    # A forked child that outlives the run would otherwise keep the lock.
    os.register_at_fork(after_in_child=self._close_lock)
    return self

  def __exit__(self, *exception: object) -> None:
    self._close_lock()

  def _close_lock(self) -> None:
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None


def _started(stage: Path) -> float:
  """When a stage wrote its first line: files in its folder are replaced later, the first metrics are not."""
  first = next(read_json_lines(stage / "metrics.jsonl"), {})
  with contextlib.suppress(KeyError, TypeError, ValueError):
    return float(first["time"])
  return stage.stat().st_mtime


def write_json(path: Path, value: Any) -> None:
  """Replaces `path` in one step: a reader or a kill finds the old content or the new, never a part."""
  text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
  path.parent.mkdir(parents=True, exist_ok=True)
  replace_file(path, text)


def replace_file(path: Path, text: str) -> None:
  """The same for any text."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(temporary, "w", encoding="utf-8", errors="surrogatepass") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def json_safe(value: Any) -> Any:
  """`value` with numbers that are not finite, which JSON lacks, as the strings "NaN", "Infinity" and "-Infinity"."""
  if isinstance(value, dict):
    return {key: json_safe(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [json_safe(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
  return value


def read_json(path: Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
  """The objects of a JSON-lines file; a line cut short by a kill is left out, a missing file is empty."""
  if not path.is_file():
    return
  with open(path, encoding="utf-8", errors="replace") as lines:
    for line in lines:
      try:
        value = json.loads(line)
      except ValueError:
        continue
      if isinstance(value, dict):
        yield value


def environment() -> dict[str, Any]:
  """What a result depends on besides the config: versions, devices, commit, command."""
  devices = jax.devices()
  return {
    "started": _now(),
    "command": " ".join(sys.argv),
    "commit": _git_commit() or "unknown",
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "processes": jax.process_count(),
    "host": socket.gethostname(),
    "cpu_count": os.cpu_count(),
    "platform": platform.platform(),
    "python": platform.python_version(),
    **{name: version for name in _PACKAGES if (version := _version(name))},
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git_commit() -> str | None:
  """Commit of the source tree, with "+changes" when it was edited since; None where there is no git checkout."""

  def git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

  try:
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.SubprocessError):
    return None


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
