"""Seconds until an empty program has run in the sandbox, beside a bare Python process.

  python benchmarks/sandbox_start.py

Both are the shortest of several; a bare `python -I -S -c ""` is what no sandbox of processes can be faster than.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from absl import app, flags

from qwen3_jax.sandbox.run import run_python

REPEATS = flags.DEFINE_integer("repeats", 20, "How often each is started.", lower_bound=1)


def fastest(start: Callable[[], object]) -> float:
  start()
  times = []
  for _ in range(REPEATS.value):
    began = time.perf_counter()
    start()
    times.append(time.perf_counter() - began)
  return min(times)


def main(_: list[str]) -> None:
  sandboxed = fastest(lambda: run_python(""))
  bare = fastest(lambda: subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True))
  print(f"sandboxed {1000 * sandboxed:.1f} ms, bare {1000 * bare:.1f} ms: {sandboxed / bare:.2f} times as long")


if __name__ == "__main__":
  app.run(main)
