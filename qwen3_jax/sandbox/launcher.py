"""A script that runs one program: reads the job from stdin, writes the outcome to stdout, both in `marshal`'s form.

It lives outside of the namespaces, alone in its own process and with one thread, because forking a process with JAX'
threads is unsafe. It dies with the process that started it, and what it started dies with it.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import select
import sys
import time

# The package without its __init__, which takes longer than all of this script.
_package = type(sys)("qwen3_jax")
_package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
sys.modules.setdefault("qwen3_jax", _package)

from qwen3_jax.sandbox import inside, libc, usage  # noqa: E402

_FIRST_UID = 1_900_000_000  # of programs that root runs, plus the launcher's process id: no two at a time are the same
_CAPABILITIES = 1 << 6 | 1 << 7 | 1 << 21  # CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
_LOOK_SECONDS = 0.01  # between looks at what a program uses
_SEALS = 0xF  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE
_SIGKILL, _SIGXCPU = 9, 24


def main() -> None:
  job = marshal.load(sys.stdin.buffer)
  result: tuple
  try:
    result = _run(job)
  except OSError as error:
    result = ("refused", inside.describe(error))
  sys.stdout.buffer.write(marshal.dumps(result))
  sys.stdout.flush()
  os._exit(0)  # the interpreter's own tidying up takes milliseconds


def _run(job: dict) -> tuple:
  """(status, stdout, stderr, seconds), or ("refused", why)."""
  usage.check_available()
  uid = _FIRST_UID + os.getpid() if _is_root() else None
  stdin = _readable(job["stdin"])
  if uid is None:
    _enter_user_namespace()
  else:
    libc.unshare(libc.CLONE_NEWPID, "PID namespace")
  libc.prctl(libc.PR_SET_PDEATHSIG, _SIGKILL)
  if os.getppid() != job["parent"]:
    os._exit(1)
  (stdout, stdout_end), (stderr, stderr_end), (report, report_end), (go_end, go) = (os.pipe() for _ in range(4))
  process = os.fork()
  if process == 0:
    os.close(go)
    inside.init(job, uid, go_end, report_end, (stdin, stdout_end, stderr_end))
  for end in (stdin, stdout_end, stderr_end, report_end, go_end):
    os.close(end)
  try:
    if os.read(report, 1) == inside.READY:
      os.write(go, inside.GO)
    return _supervise(job, process, stdout, stderr, report)
  finally:
    _kill(process)


def _is_root() -> bool:
  """Whether this may set up namespaces and take any uid by itself."""
  with open("/proc/self/uid_map") as file:
    every_uid = file.read().split() == ["0", "0", "4294967295"]
  with open("/proc/self/status") as file:
    (effective,) = [int(line.split()[1], 16) for line in file if line.startswith("CapEff:")]
  return every_uid and effective & _CAPABILITIES == _CAPABILITIES


def _enter_user_namespace() -> None:
  """A new one, along with a PID namespace for what is forked next."""
  uid, gid = os.geteuid(), os.getegid()
  libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWPID, "user and PID namespaces")
  for name, text in (
    ("setgroups", "deny"),
    ("uid_map", f"{inside.INSIDE_UID} {uid} 1"),
    ("gid_map", f"{inside.INSIDE_UID} {gid} 1"),
  ):
    with open(f"/proc/self/{name}", "w") as file:
      file.write(text)


def _readable(content: bytes) -> int:
  """A file of that content that no one can change."""
  file = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
  with open(file, "wb", closefd=False) as writer:
    writer.write(content)
  fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
  reader = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
  os.close(file)
  return reader


def _kill(process: int) -> None:
  """Ends everything in the namespace whose first process this is, and waits until it has."""
  try:
    os.kill(process, _SIGKILL)
    os.waitpid(process, 0)
  except (ProcessLookupError, ChildProcessError):
    pass  # it was waited for before


def _supervise(job: dict, process: int, stdout: int, stderr: int, report: int) -> tuple:
  outputs = {stdout: bytearray(), stderr: bytearray()}
  reports = bytearray()
  limit = job["output_bytes"]
  poll = select.poll()
  for file in (stdout, stderr, report):
    poll.register(file, select.POLLIN)
  started = deadline = float("inf")
  next_look = 0.0
  broken = ""  # the limit that was
  running = True
  while running and not broken:
    for file, _ in poll.poll(_LOOK_SECONDS * 1000):
      data = os.read(file, 65536)
      if not data:
        poll.unregister(file)
        running = running and file != report
      elif file == report:
        reports += data
        if started == float("inf") and reports.startswith(inside.STARTED.encode()):
          started = time.monotonic()
          deadline = started + job["seconds"]
      else:
        outputs[file] += data
        broken = "output" if len(outputs[file]) > limit else broken
    now = time.monotonic()
    if now > deadline:
      broken = broken or "timeout"
    elif now > next_look:
      threads, memory = usage.usage_below(process)
      next_look = now + _LOOK_SECONDS
      if memory > job["memory_bytes"]:
        broken = broken or "memory"
      elif threads > job["processes"]:
        broken = broken or "killed"
  seconds = max(0.0, time.monotonic() - started)
  _kill(process)
  for file in outputs:  # what is left in the pipes, which have no writers any more
    while len(outputs[file]) <= limit and (data := os.read(file, 65536)):
      outputs[file] += data
  if any(len(output) > limit for output in outputs.values()):
    broken = broken or "output"
  lines = dict(line.partition(" ")[::2] for line in reports.decode().splitlines())
  if inside.FAILED in lines:
    return "refused", lines[inside.FAILED]
  if started == float("inf"):
    return "refused", "the first process of the namespaces ended before the program began"
  status = broken or _status(lines.get(inside.ENDED), bytes(outputs[stderr]), job["cpu_seconds"])
  return status, bytes(outputs[stdout][:limit]), bytes(outputs[stderr][:limit]), seconds


def _status(ended: str | None, stderr: bytes, cpu_seconds: int) -> str:
  """Of a program that ended by itself or by the kernel's limits."""
  if ended is None:
    return "killed"
  code, used = ended.split()
  if int(code) == 0:
    return "ok"
  if os.WIFSIGNALED(int(code)):
    # The kernel looks at ticks of its clock, which may be a little ahead of the time accounted.
    spent = float(used) > 0.95 * cpu_seconds
    return "timeout" if os.WTERMSIG(int(code)) in (_SIGKILL, _SIGXCPU) and spent else "killed"
  last = stderr.rstrip().rpartition(b"\n")[2]
  return "memory" if last.startswith(b"MemoryError") or b"[Errno 12]" in last else "error"


if __name__ == "__main__":
  main()
