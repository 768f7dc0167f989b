"""Programs that take all they can get."""

import dataclasses
import time

import pytest

from qwen3_jax.sandbox.launcher import _status
from qwen3_jax.sandbox.run import Limits
from tests.sandbox.conftest import BRIEF, SHORT

IGNORE_SIGNALS = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
  signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
"""


@pytest.mark.parametrize(
  "source",
  [
    "while True: pass",
    "import time; time.sleep(1000)",
    "import sys; print('kept', flush=True); input() or sys.stdin.read(); import threading; threading.Event().wait()",
    f"{IGNORE_SIGNALS}\nwhile True: pass",
    "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "10 ** 10 ** 10",  # does not look at signals
    "import re; re.match('(a*)*b', 'a' * 60)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
  ],
)
def test_time(run, source):
  start = time.monotonic()
  outcome = run(source, stdin="\n", limits=BRIEF)
  assert outcome.status == "timeout"
  assert BRIEF.seconds <= outcome.seconds <= time.monotonic() - start < 60  # none would end by itself
  assert outcome.stdout == ("kept\n" if "kept" in source else "")


def test_cpu_time(run):
  """Of each process; the kernel's SIGKILL at the limit is told from others by the time spent."""
  assert run("import resource; print(resource.getrlimit(resource.RLIMIT_CPU))", limits=BRIEF).stdout == "(1, 1)\n"
  assert _status("9 1.0", b"", cpu_seconds=1) == "timeout"
  assert _status("9 0.5", b"", cpu_seconds=1) == "killed"


@pytest.mark.parametrize(
  "source",
  [
    "x = [0] * 10**9",
    "x = []\nwhile True: x.append(bytes(10**6))",
    "x = 'a'\nwhile True: x += x",
    "import mmap\nx = mmap.mmap(-1, 2**30, flags=mmap.MAP_PRIVATE)",
    "import mmap\nx = []\nwhile True:\n  x += [mmap.mmap(-1, 2**24, flags=2)]\n  x[-1][:] = b'x' * 2**24",
    "def f(): f()\nimport sys\nsys.setrecursionlimit(10**9)\nf()",
    "import os\nfor _ in range(6):\n  if os.fork() == 0: break\nx = b'x' * 40 * 2**20\nimport time; time.sleep(100)",
    "import os\nwhile os.fork() == 0: x = b'x' * 40 * 2**20\nimport time; time.sleep(100)",
  ],
)
def test_memory(run, source):
  assert run(source).status == "memory"


def test_caught_memory_error(run):
  outcome = run("try: x = bytes(10**12)\nexcept MemoryError: print('caught')")
  assert (outcome.status, outcome.stdout) == ("ok", "caught\n")


def test_memory_within_the_limit(run):
  assert run("x = b'x' * (100 * 2**20); print(len(x))").status == "ok"


def test_no_memory_without_owner(run):
  """Memory that no process maps would not count."""
  source = """
    import ctypes, mmap, os
    libc = ctypes.CDLL(None, use_errno=True)
    for attempt in (
      lambda: os.memfd_create("x"),
      lambda: mmap.mmap(-1, 4096),
      lambda: open("/dev/zero", "r+b"),
      lambda: libc.shmget(1, 4096, 0o1600) != -1 or open("/no shmget"),
    ):
      try:
        print("has", attempt())
      except OSError:
        print("refused")
  """
  assert run(source).stdout == "refused\n" * 4


def test_recursion(run):
  outcome = run("def f(x): return f(x + 1)\nf(0)")
  assert outcome.status == "error" and outcome.stderr.splitlines()[-1].startswith("RecursionError")


def test_stack_overflow(run):
  """Crashes by SIGSEGV, in C code that recurs."""
  source = """
    import sys
    sys.setrecursionlimit(10**8)
    x = []
    for _ in range(10**6):
      x = [x]
    class A:
      def __repr__(self): return repr([self] * 1)
    def deep(n): return sorted([n], key=deep)
    deep(0)
  """
  assert run(source, limits=dataclasses.replace(SHORT, memory_bytes=2**30)).status == "killed"


@pytest.mark.parametrize(
  "source",
  [
    "import os\nwhile True: os.fork()",
    "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "import os\nwhile True:\n  try: os.fork() or os.setsid()\n  except OSError: pass",
    "import _thread, time\nwhile True:\n  try: _thread.start_new_thread(time.sleep, (9,))\n  except RuntimeError: pass",
  ],
)
def test_fork_bomb(run, source):
  start = time.monotonic()
  assert run(source, limits=BRIEF).status in ("error", "timeout")
  assert time.monotonic() - start < 60


@pytest.mark.parametrize("start", ["os.fork() or time.sleep(1000)", "_thread.start_new_thread(time.sleep, (1000,))"])
def test_number_of_processes(run, start):
  source = f"""
    import os, time, _thread
    made = 0
    try:
      while made < 100:
        {start}
        made += 1
    except (OSError, RuntimeError):
      print(made, flush=True)
      os._exit(0)
  """
  outcome = run(source)
  assert (outcome.status, outcome.stdout) == ("ok", f"{SHORT.processes - 1}\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
  "source",
  [
    "import sys\nwhile True: sys.{0}.write('x' * 10**6)",
    "import sys\nsys.{0}.write('x' * 100_001)",
    "import os, sys\nwhile True:\n  try: os.write(sys.{0}.fileno(), b'x' * 4096)\n  except OSError: pass",
    "import os, sys\nos.fork(); os.fork()\nwhile True: os.write(sys.{0}.fileno(), b'x' * 4096)",
  ],
)
def test_output(run, source, stream):
  outcome = run(source.format(stream))
  assert outcome.status == "output"
  assert getattr(outcome, stream) == "x" * SHORT.output_bytes


def test_output_within_the_limit(run):
  outcome = run("import sys; sys.stdout.write('x' * 100_000); sys.stderr.write('y' * 100_000)")
  assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "x" * 100_000, "y" * 100_000)


@pytest.mark.parametrize(
  "source, error",
  [
    ("with open('big', 'wb') as file: file.write(bytes(2**20 + 1))", "OSError: [Errno 27] File too large"),
    ("import os; os.posix_fallocate(os.open('big', os.O_CREAT | os.O_RDWR), 0, 2**30)", "OSError: [Errno 27]"),
    ("for i in range(9): open(f'{i}', 'wb').write(bytes(2**18))", "OSError: [Errno 28] No space left on device"),
    ("for i in range(10**6): open(f'{i}', 'w').close()", "OSError: [Errno 28] No space left on device"),
    ("import os\nfor i in range(10**6): os.mkdir(f'{i}')", "OSError: [Errno 28] No space left on device"),
    ("x = [open('/dev/null') for _ in range(1000)]", "OSError: [Errno 24] Too many open files"),
  ],
)
def test_files(run, source, error):
  outcome = run(source)
  assert outcome.status == "error" and outcome.stderr.splitlines()[-1].startswith(error)


def test_files_within_the_limit(run):
  assert run("print(open('f', 'wb').write(bytes(10**6)))").stdout == "1000000\n"


@pytest.mark.parametrize("name", ["CPU", "AS", "NPROC", "FSIZE", "NOFILE", "CORE"])
def test_limits_cannot_be_raised(run, name):
  source = f"""
    import resource
    limit = resource.RLIMIT_{name}
    soft, hard = resource.getrlimit(limit)
    print(soft == hard != resource.RLIM_INFINITY)
    resource.setrlimit(limit, (hard + 1, hard + 1))
  """
  outcome = run(source)
  assert outcome.stdout == "True\n"
  assert outcome.stderr.splitlines()[-1] == "ValueError: not allowed to raise maximum limit"


def test_limits_are_those_asked_for(run):
  source = "x = b'x' * (150 * 2**20); print(len(x))"
  assert run(source, limits=Limits(seconds=3)).status == "ok"
  assert run(source).status == "memory"
