"""What runs in the namespaces: an init process that sets up and reaps, and the program, confined.

Runs in the launcher: standard library only.
"""

from __future__ import annotations

import os
import resource

from qwen3_jax.sandbox import filesystem, libc, seccomp

INSIDE_UID = 65534  # in a user namespace
GO = b"g"
READY = b"r"
STARTED, ENDED, FAILED = "started", "ended", "failed"  # first words of the lines that follow it
STACK_BYTES = 8 * 2**20
# Address space is no memory yet: libraries and arenas take it without using it; so do stacks, which come on top.
ADDRESS_SPACE_BYTES = 512 * 2**20
OPEN_FILES = 128
_SEPARATE = libc.CLONE_NEWNS | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWCGROUP
_ENVIRONMENT = {
  "HOME": filesystem.SCRATCH,
  "TMPDIR": filesystem.SCRATCH,
  "PATH": "/usr/bin:/bin",
  "LANG": "C.UTF-8",
  "MALLOC_ARENA_MAX": "2",  # else glibc takes 64 MiB of address space for each thread
}


def init(job: dict, uid: int | None, go: int, report: int, streams: tuple[int, int, int]) -> None:
  """The first process of a PID namespace: with it, everything in the namespace ends.

  Args:
    job: as `launcher` gets it.
    uid: what the program becomes; None: it is that already, in a user namespace.
    go: pipe that says GO once the launcher knows that this process dies with it.
    report: pipe that takes READY, STARTED and how the program ended, or FAILED and why.
    streams: what are to be the program's stdin, stdout and stderr.
  """
  try:
    libc.prctl(libc.PR_SET_PDEATHSIG, 9)
    os.write(report, READY)
    if os.read(go, 1) != GO:
      os._exit(1)
    _die_first()
    os.setsid()  # kill(0) from inside would reach the launcher, which has the same uid for an ordinary user
    os.umask(0o022)
    libc.unshare(_SEPARATE, "mount, network, IPC, UTS and cgroup namespaces")
    libc.set_host_name("sandbox")
    owner = INSIDE_UID if uid is None else uid
    filesystem.build(job["readable"], job["hidden"], job["source"], job["file_bytes"], owner)
    child = os.fork()
    if child == 0:
      _become_program(job, uid, report, streams)
    for stream in streams:
      os.close(stream)
    _say(report, STARTED)
    while True:
      pid, status, usage = os.wait4(-1, 0)
      if pid == child:
        _say(report, ENDED, status, usage.ru_utime + usage.ru_stime)
        os._exit(0)
  except BaseException as error:
    _fail(report, error)


def _say(report: int, *words: object) -> None:
  os.write(report, (" ".join(map(str, words)) + "\n").encode())


def _fail(report: int, error: BaseException) -> None:
  """Says why there is no program."""
  _say(report, FAILED, describe(error))
  os._exit(1)


def describe(error: BaseException) -> str:
  """In one line."""
  if isinstance(error, OSError) and error.filename:
    return f"{error.filename}: {error.strerror}"
  return f"{type(error).__name__}: {error}".replace("\n", " ")


def _die_first() -> None:
  """Of all processes, where the machine itself has no memory left."""
  try:
    with open("/proc/self/oom_score_adj", "w") as file:
      file.write("1000")
  except OSError:
    pass  # without /proc; the sandbox' own limit of memory holds all the same


def _become_program(job: dict, uid: int | None, report: int, streams: tuple[int, int, int]) -> None:
  for target, stream in enumerate(streams):
    os.dup2(stream, target)
  try:
    os.setsid()
    os.chdir(filesystem.SCRATCH)
    _drop_privileges(uid)
    _limit(job, own_processes=2 if uid is None else 0)
    seccomp.install()
    # The `site` module gives programs exit() and quit(); there are no packages that it could find.
    command = [job["python"], "-I", "-B", "-X", "utf8", filesystem.PROGRAM]
    os.execve(job["python"], command, _ENVIRONMENT)
  except BaseException as error:
    _fail(report, error)


def _drop_privileges(uid: int | None) -> None:
  capability = 0
  while True:
    try:
      libc.prctl(libc.PR_CAPBSET_DROP, capability)
    except OSError:
      break  # after the last
    capability += 1
  if uid is not None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _limit(job: dict, own_processes: int) -> None:
  """Hard limits: they cannot be raised again. `own_processes` of the launcher's count in a user namespace."""
  limits = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_CPU: job["cpu_seconds"],
    resource.RLIMIT_FSIZE: job["file_bytes"],
    resource.RLIMIT_NOFILE: OPEN_FILES,
    resource.RLIMIT_NPROC: job["processes"] + own_processes,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_AS: job["memory_bytes"] + ADDRESS_SPACE_BYTES + job["processes"] * STACK_BYTES,
  }
  for name, value in limits.items():
    value = _at_most(value, name)
    resource.setrlimit(name, (value, value))
  stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
  resource.setrlimit(resource.RLIMIT_STACK, (_at_most(STACK_BYTES, resource.RLIMIT_STACK), stack))


def _at_most(value: int, name: int) -> int:
  hard = resource.getrlimit(name)[1]
  return value if hard == resource.RLIM_INFINITY else min(value, hard)
