"""Seconds until an empty program has run in the sandbox, beside a bare Python process.

  python benchmarks/sandbox_start.py [--repeats=20]

Both are the shortest of several; a bare `python -I -S -c ""` is what no sandbox of processes can be faster than.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import timeit
from collections.abc import Callable

from qwen3_jax.sandbox.run import run_python


def sandboxed() -> None:
  outcome = run_python("")
  if outcome.status != "ok":
    raise RuntimeError(f"an empty program ended with {outcome.status!r}: {outcome.stderr}")


def bare() -> None:
  subprocess.run([sys.executable, "-I", "-S", "-c", ""], check=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--repeats", type=int, default=20)
  repeats = parser.parse_args().repeats

  def fastest(start: Callable[[], None]) -> float:
    start()  # what only the first one needs
    return 1000 * min(timeit.repeat(start, number=1, repeat=repeats))

  ours, peer = fastest(sandboxed), fastest(bare)
  print(f"sandboxed {ours:.1f} ms, bare {peer:.1f} ms: {ours / peer:.2f} times as long")


if __name__ == "__main__":
  main()
