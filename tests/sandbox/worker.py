"""A process that calls functions for the tests, as an ordinary user where the tests run as root."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
NOBODY = 65534


class Worker:
  """Runs functions of importable modules; use as a context manager."""

  def __enter__(self):
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": ROOT, "SECRET": "in the environment"}
    self._process = subprocess.Popen(
      [sys.executable, __file__], stdin=pipe, stdout=pipe, env=environment, start_new_session=True
    )
    return self

  def __exit__(self, *_):
    self._process.stdin.close()
    self._process.wait(30)

  def call(self, function, *arguments, **options):
    pickle.dump((function, arguments, options), self._process.stdin)
    self._process.stdin.flush()
    failed, value = pickle.load(self._process.stdout)
    if failed:
      raise value
    return value


def become_ordinary():
  """Gives up root for good, in a mount namespace where the interpreter and this repository can be reached."""
  from qwen3_jax.sandbox import libc

  libc.unshare(libc.CLONE_NEWNS, "mount namespace")
  libc.mount("", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
  needed = [sys.base_prefix, ROOT, sys.prefix]
  closed = {parent for path in needed for parent in Path(path).parents if not parent.stat().st_mode & 1}
  behind = {path: os.open(path, os.O_PATH) for path in needed if closed & set(Path(path).parents)}
  for folder in sorted(closed):
    if not any(other in folder.parents for other in closed):
      libc.mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
  for path, handle in behind.items():
    os.makedirs(path, exist_ok=True)
    libc.mount(f"/proc/self/fd/{handle}", path, flags=libc.MS_BIND | libc.MS_REC)
    os.close(handle)
  os.setgroups([])
  os.setresgid(NOBODY, NOBODY, NOBODY)
  os.setresuid(NOBODY, NOBODY, NOBODY)
  assert os.geteuid() == NOBODY


def _serve():
  answers = os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)
  if os.geteuid() == 0:
    become_ordinary()
  while True:
    try:
      function, arguments, options = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    try:
      answer = (False, function(*arguments, **options))
    except Exception as error:
      answer = (True, error)
    pickle.dump(answer, answers)
    answers.flush()


if __name__ == "__main__":
  _serve()
