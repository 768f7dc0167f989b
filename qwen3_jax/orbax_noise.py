"""Keeps orbax from printing pages of tracebacks, from several threads, of an error that is raised to the caller too."""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from logging import LogRecord, getLogger

from absl import logging


@functools.cache
def silence() -> None:
  """Once per process; errors themselves are raised as before."""
  logging.get_absl_logger().addFilter(_is_not_orbax)
  asyncio = getLogger("asyncio")  # tells of errors in what nobody waited for once something else failed
  asyncio.addFilter(_is_not_orbax)
  asyncio.addFilter(_was_raised_in_python)
  # Writes that had not begun when another one failed are never awaited.
  warnings.filterwarnings("ignore", r"coroutine '\w*serialize\w*\.", RuntimeWarning)
  previous = sys.unraisablehook

  def hook(unraisable):
    # Reads and writes that were still under way when another one failed report to an event loop that is gone.
    if str(unraisable.exc_value) != "Event loop is closed":
      previous(unraisable)

  sys.unraisablehook = hook


def _is_not_orbax(record: LogRecord) -> bool:
  raised_in = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
  files = [record.pathname, *(frame.filename for frame in raised_in)]
  return not any(f"{os.sep}orbax{os.sep}" in file for file in files)


def _was_raised_in_python(record: LogRecord) -> bool:
  """Not what tensorstore's own threads report of the writes that orbax hands to it: no line of Python raised it."""
  return not record.exc_info or record.exc_info[2] is not None
