"""Runs programs that a model wrote, isolated from the machine.

Every run is a launcher, a process of one thread, and two processes in namespaces of their own: an init that sets up,
and the program. What holds for root and for an ordinary user, and by which means:

  Guarantee              By
  files                  mount namespace, pivot_root into a memory file system: the interpreter, its standard library
                         and shared libraries, /dev/null and /dev/urandom, read-only; no /proc; /scratch for writing
  scratch disappears     /scratch is memory of the mount namespace, which ends with its last process
  network                network namespace without interfaces; seccomp: no socket() (socketpair works)
  other processes        PID and IPC namespaces; a session of its own; no capabilities; seccomp: no ptrace and the like
  nothing outlives       the namespace's init is killed, and the kernel all in it, daemons and sessions of their own
                         included; init dies with the launcher, and the launcher with this process (PR_SET_PDEATHSIG)
  wall clock             the launcher
  CPU time               RLIMIT_CPU, for each process
  memory                 the launcher looks every 10 ms at what all processes have; RLIMIT_AS for each; seccomp: no
                         memory without an owner (memfd, System V, shared anonymous mappings)
  processes, threads     RLIMIT_NPROC, of a uid (root) or user namespace (others) of this run alone
  output                 the launcher
  size of files          size of /scratch, RLIMIT_FSIZE
  privileges             root: a uid that nobody has; others: a user namespace; both: no bounding set, no_new_privs,
                         seccomp: no mounts, namespaces, modules, keys, bpf, perf, io_uring, ...
  secrets                no environment, no files of this process but pipes, no host name

Needs Linux 5.14 or later on x86_64 or aarch64, and either CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID or user namespaces
for everybody. What is not guarded: time (a program can see how loaded the machine is), faults of the kernel.
"""

from __future__ import annotations

import dataclasses
import marshal
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Literal

from qwen3_jax.sandbox.interpreter import base_python, interpreter_files

Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]

_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
_GRACE_SECONDS = 60.0  # beyond a program's own, for a launcher on a machine that is overloaded
_HELP = (
  "programs run only where they can be isolated: on Linux 5.14 or later, as root with CAP_SYS_ADMIN (docker run "
  "--cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined) or as a user who may "
  "create user namespaces (sysctl user.max_user_namespaces=10000 and, where they exist, "
  "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
)


class SandboxError(RuntimeError):
  """This machine cannot isolate a program; nothing ran."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may use. Raises ValueError for what is not positive."""

  seconds: float = 10.0  # wall clock; and CPU time of each process, rounded up
  memory_bytes: int = 2**30  # of all processes together; files in the scratch directory come on top
  processes: int = 32  # and threads, the program's first included
  output_bytes: int = 2**20  # of stdout and of stderr, each
  file_bytes: int = 2**26  # of all files in the scratch directory together

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not value > 0 or not math.isfinite(value):
        raise ValueError(f"{field.name}={value!r}, expected a positive number")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a program ended.

  ok: exit code 0. error: another one, e.g. an exception, whose traceback is in stderr. memory: it was ended for what it
  used, or no exception handler took a MemoryError. output: it was ended for writing too much. timeout: of either clock.
  killed: by a signal (a crash, too), or for more processes than allowed.
  """

  status: Status
  stdout: str  # at most `output_bytes` in UTF-8, with U+FFFD for what is not UTF-8
  stderr: str  # likewise
  seconds: float  # wall clock, without setting up


def run_python(source: str, *, stdin: str = "", limits: Limits = Limits()) -> Outcome:
  """Runs `source` as a Python program that sees the standard library and an empty directory only.

  Any number of threads and processes may call it at once. It raises nothing for what the program does.

  Raises:
    SandboxError: this machine cannot isolate it. Nothing ran.
  """
  python = base_python()
  try:
    readable, hidden = interpreter_files(python)
  except (OSError, subprocess.CalledProcessError) as error:
    raise SandboxError(f"{python} does not run by itself: {error}") from error
  job = {
    **dataclasses.asdict(limits),
    "cpu_seconds": math.ceil(limits.seconds),
    "python": python,
    "readable": readable,
    "hidden": hidden,
    "source": source.encode("utf-8", "surrogatepass"),
    "stdin": stdin.encode("utf-8", "surrogatepass"),
    "parent": os.getpid(),
  }
  started = time.monotonic()
  result = _launch(python, marshal.dumps(job), limits.seconds + _GRACE_SECONDS)
  if result is None:
    return Outcome("killed", "", "", time.monotonic() - started)
  status, *rest = result
  if status == "refused":
    raise SandboxError(f"{rest[0]}; {_HELP}")
  stdout, stderr, seconds = rest
  return Outcome(status, stdout.decode(errors="replace"), stderr.decode(errors="replace"), seconds)


def _launch(python: str, job: bytes, seconds: float) -> tuple | None:
  """What the launcher says; None where it was killed, as it is after `seconds`, along with what it started."""
  command = [python, "-I", "-S", _LAUNCHER]
  pipe = subprocess.PIPE
  with subprocess.Popen(
    command, stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/", start_new_session=True
  ) as launcher:
    try:
      answer, problem = launcher.communicate(job, timeout=seconds)
    except subprocess.TimeoutExpired:
      return None
    finally:
      launcher.kill()
  if launcher.returncode < 0:
    return None
  if launcher.returncode > 0:
    last = problem.decode(errors="replace").strip().rpartition("\n")[2]
    raise SandboxError(f"the launcher ended with {launcher.returncode}: {last or 'it said nothing'}; {_HELP}")
  return marshal.loads(answer)
