"""What well-behaved and failing programs give."""

import dataclasses
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwen3_jax.sandbox.run import Limits, run_python
from tests.sandbox.conftest import SHORT
from tests.sandbox.worker import ROOT


def test_prints(run):
  outcome = run("print('hello world')")
  assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "hello world\n", "")
  assert 0 < outcome.seconds <= SHORT.seconds


def test_stdin(run):
  text = "".join(f"{i} ünï\n" for i in range(20_000))
  outcome = run("import sys; print(sum(int(line.split()[0]) for line in sys.stdin))", stdin=text)
  assert (outcome.status, outcome.stdout) == ("ok", f"{sum(range(20_000))}\n")
  assert run("print(input(), input())", stdin="ä\nb").stdout == "ä b\n"
  assert run("input()").stderr.endswith("EOFError: EOF when reading a line\n")
  mapped = "import mmap; print(mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:2])"
  assert run(mapped, stdin="fast").stdout == "b'fa'\n"


def test_stdin_cannot_be_changed(run):
  outcome = run("import os; os.write(0, b'x')", stdin="text")
  assert outcome.status == "error" and "OSError" in outcome.stderr


def test_exception(run):
  outcome = run("print('before')\n\ndef f():\n  return 1 / 0\n\nf()\n")
  assert (outcome.status, outcome.stdout) == ("error", "before\n")
  assert outcome.stderr.startswith("Traceback") and "line 4, in f" in outcome.stderr
  assert outcome.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
  "source, status",
  [
    ("exit()", "ok"),
    ("import sys; sys.exit(3)", "error"),
    ("import os; os._exit(0)", "ok"),
    ("def (", "error"),
    ("x = '\0'", "error"),
    ("x = '\ud800'", "error"),
    ("import os; os.abort()", "killed"),
    ("import os; os.kill(os.getpid(), 9)", "killed"),
    ("raise MemoryError", "memory"),
  ],
)
def test_endings(run, source, status):
  assert run(source).status == status


def test_bytes_that_are_no_text(run):
  assert run(r"import os; os.write(1, b'a\xff')").stdout == "a\N{REPLACEMENT CHARACTER}"


def test_standard_library(run):
  outcome = run("""
    import asyncio, bz2, ctypes, decimal, hashlib, json, lzma, math, random, sqlite3, tempfile, threading, zlib
    from concurrent.futures import ProcessPoolExecutor
    import multiprocessing

    async def later():
      await asyncio.sleep(0.01)
      return 1

    def square(x):
      return x * x

    if __name__ == "__main__":
      total = asyncio.run(later())
      thread = threading.Thread(target=lambda: globals().update(total=total + 1))
      thread.start()
      thread.join()
      with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        total += sum(pool.map(square, range(4)))
      with tempfile.NamedTemporaryFile("w+") as file:
        file.write("x" * 10)
        file.flush()
        total += len(open(file.name).read())
      database = sqlite3.connect(":memory:")
      total += database.execute("select 100").fetchone()[0]
      print(total, hashlib.sha256(b"").hexdigest()[:4])
  """)
  assert (outcome.stderr, outcome.stdout) == ("", "126 e3b0\n")


def test_no_packages(run):
  source = """
    import os, sys
    print([path for path in sys.path if path.endswith("packages") and os.listdir(path)])
    import {}
  """
  for package in ("numpy", "pip", "qwen3_jax"):
    outcome = run(source.format(package))
    assert outcome.stdout == "[]\n" and outcome.stderr.endswith(f"No module named '{package}'\n")


def test_same_python(run):
  assert run("import sys; print(sys.version)").stdout == sys.version + "\n"


def test_many_at_once(call):
  assert call(_many) == [("ok", f"{i} ['mine{i}']\n") for i in range(12)]


def _many():
  source = textwrap.dedent("""
    import os, time
    name = input()
    open("mine" + name, "w").close()
    time.sleep(0.1)
    print(name, os.listdir())
  """)
  one = lambda i: run_python(source, stdin=str(i), limits=SHORT)
  with ThreadPoolExecutor(4) as pool:
    return [(outcome.status, outcome.stdout) for outcome in pool.map(one, range(12))]


def test_runs_do_not_see_each_other(call):
  """They look for processes while both run: each sees its init and itself."""
  assert call(_pair) == [("ok", "[1, 2]\n")] * 2


def _pair():
  source = textwrap.dedent("""
    import os, time
    time.sleep(0.2)
    seen = []
    for i in range(1, 40_000):
      try:
        os.kill(i, 0)
        seen.append(i)
      except PermissionError:
        seen.append(i)
      except ProcessLookupError:
        pass
    time.sleep(0.2)
    print(seen)
  """)
  with ThreadPoolExecutor(2) as pool:
    return [(outcome.status, outcome.stdout) for outcome in pool.map(lambda _: run_python(source), range(2))]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_positive(field):
  with pytest.raises(ValueError, match=f"{field}=0, expected a positive number"):
    Limits(**{field: 0})


def test_no_isolation(call):
  """Where no namespaces can be made nothing runs, and the error says how to mend it."""
  said = call(_without_namespaces)
  assert said.startswith("SandboxError: unshare (user and PID namespaces): ")
  assert "sysctl user.max_user_namespaces" in said and "--cap-add SYS_ADMIN" in said


_WITHOUT_NAMESPACES = """
import os
from qwen3_jax.sandbox import libc
from qwen3_jax.sandbox.run import SandboxError, run_python
uid = os.geteuid()
libc.unshare(libc.CLONE_NEWUSER, "user namespace")
for path, text in (("self/setgroups", "deny"), ("self/uid_map", f"0 {uid} 1"), ("sys/user/max_user_namespaces", "0")):
  with open(f"/proc/{path}", "w") as file:
    file.write(text)
try:
  print("ran:", run_python(""))
except SandboxError as error:
  print("SandboxError:", error)
"""


def _without_namespaces():
  command = [sys.executable, "-c", _WITHOUT_NAMESPACES]
  return subprocess.run(command, env={"PYTHONPATH": ROOT}, capture_output=True, text=True, check=True).stdout
