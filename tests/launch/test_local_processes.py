"""The launcher of several processes on one machine, with commands that take no time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*command, processes=3, grace=30):
  arguments = [f"--processes={processes}", f"--grace_seconds={grace}", "--", *command]
  return subprocess.Popen(
    [sys.executable, "-m", "launch.local_processes", *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )


def shell(script, **options):
  return start("sh", "-c", script, **options)


def finish(process):
  out, err = process.communicate(timeout=60)
  return process.returncode, sorted(out.splitlines()), err


def pids_of(process):
  """What the children printed as their process ids."""
  return [int(process.stdout.readline().split()[1]) for _ in range(3)]


def is_running(pid):
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except FileNotFoundError:
    return False
  return state != "Z"  # dead, and nobody has asked


def test_each_process_knows_itself_and_the_others():
  code, lines, err = finish(shell("echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS; echo x >&2"))
  assert code == 0 and not err
  addresses = {line.rpartition(" ")[2] for line in lines if " at " in line}
  (address,) = addresses
  assert address.startswith("localhost:") and int(address.partition(":")[2]) > 1023
  assert [line for line in lines if " at " in line] == [f"[{i}] {i} of 3 at {address}" for i in range(3)]
  assert [line for line in lines if line.endswith("x")] == [f"[{i}] x" for i in range(3)]


def test_exit_status_of_the_first_that_failed():
  code, lines, err = finish(
    shell("[ $JAX_PROCESS_ID = 1 ] && exit 7; [ $JAX_PROCESS_ID = 2 ] && sleep 1 && exit 3; echo end")
  )
  assert (code, lines) == (7, ["[0] end"])
  assert "process 1 ended with exit status 7; the others have 30 s to end" in err


def test_the_others_are_killed_in_time():
  started = time.monotonic()
  code, lines, err = finish(shell("trap '' TERM; [ $JAX_PROCESS_ID = 2 ] && kill -9 $$; sleep 600", grace=0.5))
  assert code == 128 + signal.SIGKILL and not lines and time.monotonic() - started < 30
  assert "process 2 was killed by SIGKILL" in err and "killing 2 that still run" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process(number):
  script = f"import os, signal, time; signal.signal({int(number)}, lambda *_: (print('told'), os._exit(0)))"
  process = start(sys.executable, "-c", f"{script}; print(os.getpid()); time.sleep(600)")
  pids = pids_of(process)
  process.send_signal(number)
  assert finish(process)[:2] == (0, ["[0] told", "[1] told", "[2] told"])
  assert not any(map(is_running, pids))


def test_a_second_signal_kills():
  process = shell("trap 'echo told' TERM; echo $$; while true; do sleep 0.1; done")
  pids = pids_of(process)
  process.terminate()
  assert process.stdout.readline().endswith("told\n")
  process.terminate()
  code, _, _ = finish(process)
  assert code == 128 + signal.SIGKILL and not any(map(is_running, pids))


def test_no_orphans_when_it_is_killed_itself():
  process = shell("echo $$; exec sleep 600")
  pids = pids_of(process)
  assert all(map(is_running, pids))
  process.kill()
  process.wait()
  deadline = time.monotonic() + 10
  while any(map(is_running, pids)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(is_running, pids))


@pytest.mark.parametrize(
  "arguments, code, message",
  [
    (["--processes=0", "--", "true"], 2, "--processes=0: expected at least 1"),
    (["--processes=2", "--", "no-such-command"], 127, "error: no-such-command: No such file or directory"),
  ],
)
def test_what_cannot_be_started(arguments, code, message):
  command = [sys.executable, "-m", "launch.local_processes", *arguments]
  ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
  assert ended.returncode == code and message in ended.stderr
