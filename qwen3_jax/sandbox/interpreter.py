"""The files that Python needs to run with its standard library."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

# Loads every extension module of the standard library, and says which shared libraries that took. `libgcc_s` is what
# the C library loads when a thread ends; Tk is of no use without a display.
_SCRIPT = """
import ctypes, importlib, json, os, sys, sysconfig
paths = sysconfig.get_paths()
directories = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib") if os.path.isdir(paths[name])}
for directory in directories:
  extensions = os.path.join(directory, "lib-dynload")
  for file in os.listdir(extensions) if os.path.isdir(extensions) else ():
    name = file.partition(".")[0]
    if not name.startswith(("_test", "_xx", "xx", "_tkinter", "_ctypes_test")):
      try:
        importlib.import_module(name)
      except Exception:
        pass
try:
  ctypes.CDLL("libgcc_s.so.1")
except OSError:
  pass
libraries = []
class Info(ctypes.Structure):
  _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
def add(info, size, data):
  libraries.append(os.fsdecode(info.contents.name or b""))
  return 0
ctypes.CDLL(None).dl_iterate_phdr(add, None)
print(json.dumps([sorted(directories), libraries]))
"""
_DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo")  # where libraries lie; time zones
_PACKAGES = ("site-packages", "dist-packages")


@functools.cache
def interpreter_files(python: str) -> tuple[dict[str, str], list[str]]:
  """What `python`, an interpreter outside of virtual environments, reads: paths, each with where it really lies.

  And the folders of packages below those.

  Takes some 0.1 s the first time.

  Raises:
    OSError, subprocess.CalledProcessError: it does not run.
  """
  command = [python, "-I", "-S", "-B", "-c", _SCRIPT]
  result = subprocess.run(command, capture_output=True, check=True, env={}, cwd="/", stdin=subprocess.DEVNULL)
  directories, libraries = json.loads(result.stdout)
  files = {_tidy(path) for path in [python, *libraries] if path.startswith("/")} | {*_DATA}
  inside = lambda path: any(path.startswith(directory + "/") for directory in directories)
  readable = [*directories, *sorted(path for path in files if os.path.exists(path) and not inside(path))]
  packages = [os.path.join(directory, name) for directory in directories for name in _PACKAGES]
  return {path: os.path.realpath(path) for path in readable}, [path for path in packages if os.path.isdir(path)]


def base_python() -> str:
  """The interpreter that this process' virtual environment, if any, is built on."""
  return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _tidy(path: str) -> str:
  """Without `..`, which a library's path from an interpreter's own folder has."""
  folder, name = os.path.split(path)
  return os.path.join(os.path.realpath(folder), name) if ".." in path else path
