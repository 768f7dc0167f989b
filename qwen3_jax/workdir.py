"""A run's work directory: where each thing lies, one run at a time, files that are never half-written."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax


class WorkdirError(RuntimeError):
  """The work directory cannot be used; the message says why."""


class Workdir:
  """Paths of a work directory, see docs/architecture.md. Use as a context manager to hold its lock."""

  def __init__(self, path: str | Path):
    self.path = Path(path).absolute()
    self._lock: Any = None

  def __str__(self) -> str:
    return str(self.path)

  def stage(self, stage: str) -> Path:
    return self.path / "stages" / stage

  def checkpoints(self, stage: str) -> Path:
    return self.stage(stage) / "checkpoints"

  def metrics(self, stage: str) -> Path:
    return self.stage(stage) / "metrics.jsonl"

  def samples(self, stage: str) -> Path:
    return self.stage(stage) / "samples.jsonl"

  def tensorboard(self, stage: str) -> Path:
    return self.path / "tensorboard" / stage

  @property
  def config(self) -> Path:
    return self.path / "config.json"

  @property
  def environment(self) -> Path:
    return self.path / "environment.json"

  @property
  def tokenizer(self) -> Path:
    return self.path / "tokenizer"

  def stages(self) -> list[str]:
    """Stages that have written something, in the order they started."""
    folder = self.path / "stages"
    found = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return [entry.name for entry in sorted(found, key=lambda entry: (_created(entry), entry.name))]

  def is_done(self, stage: str) -> bool:
    return (self.stage(stage) / "DONE").exists()

  def done(self, stage: str) -> dict[str, Any] | None:
    """What `mark_done` wrote, None for a stage that has not finished."""
    return read_json(self.stage(stage) / "DONE") if self.is_done(stage) else None

  def mark_done(self, stage: str, step: int, **facts: Any) -> None:
    write_json(self.stage(stage) / "DONE", {"step": step, **facts})

  def __enter__(self) -> Workdir:
    """Takes the lock, which the system releases when the process ends, however it ends.

    Raises WorkdirError when another process holds it or the folder cannot be written.
    """
    lock = self.path / ".lock"
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      handle = open(lock, "a+")
    except OSError as error:
      raise WorkdirError(f"workdir={self.path}: cannot be written ({error.strerror})") from error
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      handle.seek(0)
      holder = handle.read().strip() or "another process"
      handle.close()
      raise WorkdirError(f"workdir={self.path}: in use by {holder}; wait for it or give another --workdir") from error
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    self._lock = handle
    return self

  def __exit__(self, *exception: object) -> None:
    self._lock.close()
    self._lock = None


def _created(stage: Path) -> float:
  """When a stage wrote its first line: the files in it are replaced later, its first metrics are not."""
  first = next(read_json_lines(stage / "metrics.jsonl"), {})
  return float(first.get("time", stage.stat().st_mtime))


def write_json(path: Path, value: Any) -> None:
  """Replaces `path` in one step: a reader or a kill finds the old content or the new, never a part."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with open(temporary, "w") as handle:
    json.dump(value, handle, indent=2, ensure_ascii=False)
    handle.flush()
    os.fsync(handle.fileno())
  temporary.replace(path)


def read_json(path: Path) -> Any:
  return json.loads(path.read_text())


def read_json_lines(path: Path):
  """Yields the objects of a JSON-lines file; a line cut short by a kill is left out, a missing file is empty."""
  if not path.exists():
    return
  with open(path, encoding="utf-8", errors="replace") as handle:
    for line in handle:
      try:
        value = json.loads(line)
      except json.JSONDecodeError:
        continue
      if isinstance(value, dict):
        yield value


def environment() -> dict[str, Any]:
  """What a result depends on besides the config: versions, devices, commit, command."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
  versions = {name: importlib.metadata.version(name) for name in packages}
  devices = jax.devices()
  git = subprocess.run(
    ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
  )
  return {
    "python": platform.python_version(),
    **versions,
    "platform": platform.platform(),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "processes": jax.process_count(),
    "commit": git.stdout.strip() or "unknown",
    "command": " ".join(sys.argv),
  }
