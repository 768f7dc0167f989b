"""What a process says, as JSON lines in WORKDIR/logs/process-INDEX.jsonl.

A line is {"time" (Unix seconds), "process", "stage" (or null), "level", "message", "fields"}. It holds what people are
shown (`note`), and every warning and error that goes through Python's logging or absl's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from qwen3_jax.observability.half_lines import end_half_line
from qwen3_jax.preemption import Preempted
from qwen3_jax.workdir import Workdir, json_safe

_FILE_BYTES, _OLD_FILES = 16 << 20, 3  # a process's log takes at most four times 16 MiB
_notes = logging.getLogger("qwen3_jax.notes")  # not shown on the console: whoever notes something has shown it
_notes.setLevel(logging.INFO)
_notes.propagate = False
_notes.addHandler(logging.NullHandler())
_stage: str | None = None


def path_in(workdir: Workdir) -> Path:
  """This process's file; older lines are in the files with .1, .2 and .3 behind its name."""
  return workdir.path / "logs" / f"process-{jax.process_index()}.jsonl"


@contextlib.contextmanager
def written(workdir: Workdir) -> Iterator[None]:
  """Within, lines are appended; a file that cannot be written is given up with a line on standard error."""
  path = path_in(workdir)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _Handler(path)
  except OSError as error:
    print(f"warning: {path}: {error.strerror}; no log is written", file=sys.stderr)
    yield
    return
  loggers = (logging.getLogger(), _notes)
  for logger in loggers:
    logger.addHandler(handler)
  try:
    yield
  except Preempted as notice:
    note(str(notice))
    raise
  except BaseException as error:
    _notes.error("ended by %s", type(error).__name__, exc_info=error)
    raise
  finally:
    for logger in loggers:
      logger.removeHandler(handler)
    with contextlib.suppress(OSError):
      handler.close()


def note(message: str, level: int = logging.INFO, **fields: Any) -> None:
  """A line with `fields`, JSON, beside the message; nothing where no log is written."""
  _notes.log(level, "%s", message, extra={"fields": fields})


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
  """Lines within, of all threads, name this stage."""
  global _stage
  outer, _stage = _stage, name
  try:
    yield
  finally:
    _stage = outer


class _Handler(logging.handlers.RotatingFileHandler):
  def __init__(self, path: Path):
    end_half_line(path)
    super().__init__(path, maxBytes=_FILE_BYTES, backupCount=_OLD_FILES, encoding="utf-8", errors="backslashreplace")
    self.setFormatter(_Formatter())
    self._failed = False

  def emit(self, record: logging.LogRecord) -> None:
    if not self._failed:
      super().emit(record)

  def handleError(self, record: logging.LogRecord) -> None:
    """Of a full disk; a run does not end because it cannot be written about."""
    self._failed = True
    print(f"warning: {self.baseFilename}: {sys.exc_info()[1]}; the log ends here", file=sys.stderr)


class _Formatter(logging.Formatter):
  def format(self, record: logging.LogRecord) -> str:
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[0] is not None:
      fields["traceback"] = self.formatException(record.exc_info)
    if record.name != _notes.name:
      fields["logger"] = record.name
    line = {
      "time": round(record.created, 3),
      "process": jax.process_index(),
      "stage": _stage,
      "level": record.levelname,
      "message": record.getMessage(),
      "fields": fields,
    }
    return json.dumps(json_safe(line), ensure_ascii=False, default=str)
