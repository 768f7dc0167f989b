"""Files that are only appended to, in lines, and whose writer may be killed at any moment."""

from __future__ import annotations

import os
from pathlib import Path


def end_half_line(path: Path) -> None:
  """Puts a line break behind a line that was cut short, so that what is appended next is a line of its own.

  A file that is not there is left so. Raises OSError.
  """
  if not path.exists():
    return
  with open(path, "r+b") as file:
    if file.seek(0, os.SEEK_END):
      file.seek(-1, os.SEEK_END)
      if file.read() != b"\n":
        file.write(b"\n")
