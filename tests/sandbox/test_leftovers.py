"""Nothing is left of a program, however it ends."""

import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sandbox.conftest import BRIEF
from tests.sandbox.worker import ROOT

# Each names its processes, so that they can be found from outside, and writes a file of that name.
NAMED = """
import ctypes, os, time
def named():
  ctypes.CDLL(None).prctl(15, b"{name}", 0, 0, 0)
  open("{name}", "w").write("x")
"""
DAEMONS = {
  "child": "if os.fork() == 0: named(); time.sleep(1000)",
  "double fork": "if os.fork() == 0:\n  if os.fork() == 0: named(); time.sleep(1000)\n  os._exit(0)\nos.wait()",
  "session": "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: named(); time.sleep(1000)\n  os._exit(0)",
  "without streams": "if os.fork() == 0:\n  for i in range(3): os.close(i)\n  os.setsid(); named(); time.sleep(1000)",
  "stubborn": (
    "import signal\nif os.fork() == 0:\n  for i in range(1, 65):\n    try: signal.signal(i, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\n  os.setsid(); named()\n  while True: pass"
  ),
  "stopped": "import signal\nif os.fork() == 0: named(); os.kill(os.getpid(), signal.SIGSTOP)",
  "thread": "import threading; threading.Thread(target=lambda: (named(), time.sleep(1000)), daemon=True).start()",
  "new program": (
    "import sys\nif os.fork() == 0: os.execv(sys.executable, ['x', '-Ic', "
    "\"import ctypes, time; ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0); open('{name}', 'w'); time.sleep(1000)\"])"
  ),
}


def processes_named(name):
  found = []
  for process in filter(str.isdigit, os.listdir("/proc")):
    try:
      for thread in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{thread}/comm") as file:
          found += [process] * (file.read() == f"{name}\n")
    except OSError:
      pass
  return found


def wait_until(condition, seconds):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.01)
  return condition()


@pytest.fixture
def name():
  return uuid.uuid4().hex[:15]


@pytest.mark.parametrize("daemon, ending", [*((daemon, "end") for daemon in DAEMONS), ("stubborn", "kill")])
def test_daemons_end(run, daemon, ending, name):
  """They are seen while the program runs, and are gone as soon as its outcome is known."""
  last = "" if ending == "end" else "os.kill(os.getpid(), 9)"
  wait = f"while not os.path.exists('{name}'): time.sleep(0.01)\ntime.sleep(0.5)"
  source = f"{NAMED}\n{DAEMONS[daemon]}\n{wait}\n{last}".replace("{name}", name)
  with ThreadPoolExecutor(1) as pool:
    future = pool.submit(run, source)
    assert wait_until(lambda: processes_named(name), 30)
    assert future.result().status == {"end": "ok", "kill": "killed"}[ending]
  assert processes_named(name) == []


def test_kill_all(run, name):
  """kill(-1) reaches the program's own processes only."""
  source = f"{NAMED}\n{DAEMONS['child']}\ntime.sleep(0.1); os.kill(-1, 9); print('alive', os.wait()[1])"
  assert run(source.replace("{name}", name)).stdout == "alive 9\n"


@pytest.mark.parametrize(
  "kill", ["os.kill(0, 9)", "os.killpg(os.getpgid(0), 9)", "os.killpg(os.getpgid(os.getppid()), 9)"]
)
def test_kill_group(run, kill):
  """The launcher, which says what was printed, is in none of the groups that a program can reach."""
  outcome = run(f"import os\nprint('printed', flush=True)\ntry: {kill}\nexcept OSError: os.kill(0, 9)")
  assert (outcome.status, outcome.stdout) in [("killed", "printed\n"), ("ok", "printed\n")]


def test_init_lives(run):
  source = """
    import os
    for number in 9, 15, 19:
      try: os.kill(1, number)
      except PermissionError: pass
    print("lives")
  """
  assert run(source).stdout == "lives\n"


def test_zombies(run):
  """Orphans are reaped: far more may come and go than may be at once."""
  source = """
    import os, time
    for i in range(100):
      while True:
        try:
          child = os.fork()
          break
        except BlockingIOError:
          time.sleep(0.001)
      if child == 0:
        try: os.fork()
        except BlockingIOError: pass
        os._exit(0)
      os.waitpid(child, 0)
    print("done")
  """
  assert run(source).stdout == "done\n"
  unreaped = "import os, time\nfor i in range(10):\n  if os.fork() == 0: os._exit(0)\ntime.sleep(0.05)"
  assert run(unreaped).status == "ok"


def test_scratch_is_gone(run, name):
  """Neither a file nor a mount is left, nor does the next run find anything."""
  before = mounts()
  for last in ("", "1 / 0", "os.kill(os.getpid(), 9)", "time.sleep(1000)"):
    source = f"{NAMED}\nos.makedirs('a/b/c'); os.chmod('a', 0); named(); print(os.listdir(), flush=True)\n{last}"
    assert name in run(source.replace("{name}", name), limits=BRIEF).stdout
    found = run("import os; print([os.listdir(path) for path in ('/scratch', '/tmp', '/dev/shm')])")
    assert found.stdout == "[[], [], []]\n"
    assert name not in {*os.listdir("/tmp"), *os.listdir("/dev/shm"), *os.listdir("/")}
  assert mounts() == before


def mounts():
  """Of the sandbox' kind, as this process sees them."""
  with open("/proc/self/mountinfo") as file:
    return [line for line in file if "/scratch" in line or "/program.py" in line or "/empty" in line]


@pytest.mark.parametrize("victim", ["caller", "launcher"])
def test_crash(call, name, victim):
  """What started the program is killed without warning: the program ends with it."""
  source = f"{NAMED}\n{DAEMONS['session']}\nif True: named(); time.sleep(1000)".replace("{name}", name)
  caller = call(_start_caller, source)
  try:
    assert wait_until(lambda: len(processes_named(name)) == 2, 5)
    call(os.kill, caller if victim == "caller" else _child_of(caller), signal.SIGKILL)
    assert wait_until(lambda: not processes_named(name), 5)
  finally:
    said = call(_end_caller)
  assert said == ("" if victim == "caller" else "killed\n")


_callers = []


def _start_caller(source):
  """A process that runs `source` in the sandbox."""
  script = "import sys; from qwen3_jax.sandbox.run import run_python; print(run_python(sys.argv[1]).status)"
  process = subprocess.Popen(
    [sys.executable, "-c", script, source], env={"PYTHONPATH": ROOT}, stdout=subprocess.PIPE, text=True
  )
  _callers.append(process)
  return process.pid


def _end_caller():
  process = _callers.pop()
  try:
    return process.communicate(timeout=5)[0]
  finally:
    process.kill()


def _child_of(process):
  with open(f"/proc/{process}/task/{process}/children") as file:
    (child,) = file.read().split()
  return int(child)
