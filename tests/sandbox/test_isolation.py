"""Programs that try to get out: each attempt fails in the way that is expected of it."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()

ABSENT = [
  "/etc/passwd",
  "/etc/shadow",
  "/etc/hostname",
  "/proc/1/environ",
  "/proc/self/environ",
  "/proc/self/mountinfo",
  f"/proc/{os.getpid()}/mem",
  f"/proc/{os.getppid()}/cmdline",
  "/sys/kernel",
  "/dev/mem",
  "/dev/tty",
  "/bin/sh",
  str(HERE),
  str(Path.home() / ".bashrc"),
  "/old/etc/passwd",
  "../etc/passwd",
  "/scratch/../../../etc/passwd",
]


def test_read(run):
  source = f"""
    import os
    for path in {ABSENT}:
      for look in (open, os.stat, os.listdir):
        try:
          print(path, look(path))
        except FileNotFoundError:
          pass
    print("nothing")
  """
  assert run(source).stdout == "nothing\n"


def test_read_what_is_there_outside():
  """The files are there for those who are not isolated."""
  assert os.path.exists("/etc/passwd") and HERE.exists() and os.path.exists("/proc/self/environ")


ATTEMPTS = {
  "write to the root": ("open('/x', 'w')", "PermissionError|OSError: [Errno 30]"),
  "write to the parent of the scratch directory": ("open('../x', 'w')", "PermissionError|OSError: [Errno 30]"),
  "write to /dev": ("open('/dev/x', 'w')", "PermissionError|OSError: [Errno 30]"),
  "overwrite the program": ("open(__file__, 'w')", "PermissionError|OSError: [Errno 30]"),
  "overwrite the standard library": ("import os; open(os.__file__, 'a')", "PermissionError|OSError: [Errno 30]"),
  "overwrite the interpreter": ("import sys; open(sys.executable, 'r+b')", "PermissionError|OSError: [Errno 30]"),
  "remove the standard library": ("import os; os.unlink(os.__file__)", "PermissionError|OSError: [Errno 30]"),
  "change a mode": ("import os; os.chmod(os.__file__, 0o777)", "PermissionError|OSError: [Errno 30]"),
  "change times": ("import os; os.utime(os.__file__)", "PermissionError|OSError: [Errno 30]"),
  "symbolic link": ("import os; os.symlink('/etc/passwd', 'x'); open('x')", "FileNotFoundError"),
  "symbolic link upwards": ("import os; os.symlink('../' * 9 + 'etc/passwd', 'x'); open('x')", "FileNotFoundError"),
  "symbolic link written through": (
    "import os; os.symlink(os.__file__, 'x'); open('x', 'a')",
    "PermissionError|OSError: [Errno 30]",
  ),
  "hard link": ("import os; os.link(os.__file__, 'x')", "OSError: [Errno 18]|PermissionError"),
  "chroot": ("import os; os.mkdir('x'); os.chroot('x')", "PermissionError"),
  "device": ("import os, stat; os.mknod('x', 0o666 | stat.S_IFCHR, os.makedev(1, 1))", "PermissionError"),
  "run a file of its own": (
    "import os, shutil, sys; os.execv(shutil.copy(sys.executable, '/scratch/x'), ['x'])",
    "PermissionError|OSError: [Errno 27]",
  ),
  "shell": ("import subprocess; subprocess.run('/bin/sh')", "FileNotFoundError"),
  "os.system": ("import os; assert os.system('echo out') == 0", "AssertionError"),
  "TCP": ("import socket; socket.create_connection(('127.0.0.1', {tcp}), 1)", "PermissionError"),
  "TCP outwards": ("import socket; socket.create_connection(('1.1.1.1', 80), 1)", "PermissionError"),
  "TCP, version 6": ("import socket; socket.socket(socket.AF_INET6)", "PermissionError"),
  "listen": ("import socket; socket.create_server(('', 0))", "PermissionError"),
  "UDP": ("import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))", "PermissionError"),
  "DNS": ("import socket; socket.getaddrinfo('example.org', 80)", "socket.gaierror"),
  "raw": ("import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "PermissionError"),
  "packet": ("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "PermissionError"),
  "netlink": ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "PermissionError"),
  "vsock": ("import socket; socket.socket(socket.AF_VSOCK)", "PermissionError"),
  "unix socket": ("import socket; socket.socket(socket.AF_UNIX).connect({path!r})", "PermissionError"),
  "abstract unix socket": ("import socket; socket.socket(socket.AF_UNIX).connect({abstract!r})", "PermissionError"),
  "pair of another family": ("import socket; socket.socketpair(socket.AF_INET)", "PermissionError|OSError"),
  "urllib": ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:{tcp}')", "urllib.error.URLError"),
  "kill the parent": ("import os; os.kill(os.getppid(), 9); os.kill({pid}, 9)", "ProcessLookupError|PermissionError"),
  "kill another": ("import os; os.kill({pid}, 9)", "ProcessLookupError"),
  "become root": ("import os; os.setuid(0)", "PermissionError|OSError: [Errno 22]"),
  "other groups": ("import os; os.setgroups([0])", "PermissionError"),
  "host name": ("import socket; socket.sethostname('x')", "PermissionError"),
  "set the clock": ("import time; time.clock_settime(time.CLOCK_REALTIME, 0)", "PermissionError"),
  "higher priority": ("import os; os.nice(-5)", "PermissionError"),
  "real-time priority": ("import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))", "PermissionError"),
  "descriptors inherited": (
    "import os\nfor i in range(3, 1000):\n  try: os.fstat(i); print('open', i)\n  except OSError: pass\nos.fstat(3)",
    "OSError: [Errno 9]",
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def targets():
  """Sockets of this process that can be connected to from outside."""
  with (
    tempfile.TemporaryDirectory() as folder,
    socket.create_server(("127.0.0.1", 0)) as tcp,
    socket.socket(socket.AF_UNIX) as unix,
    socket.socket(socket.AF_UNIX) as abstract,
  ):
    unix.bind(f"{folder}/socket")
    abstract.bind(f"\0qwen3_jax {os.getpid()}")
    for listener in (unix, abstract, tcp):
      listener.listen()
      with socket.socket(listener.family) as client:
        client.connect(listener.getsockname())
      listener.accept()[0].close()
      listener.setblocking(False)
    names = {"path": unix.getsockname(), "abstract": abstract.getsockname(), "tcp": tcp.getsockname()[1]}
    yield {**names, "pid": os.getpid()}
    for listener in (unix, abstract, tcp):
      with pytest.raises(BlockingIOError):  # nobody came
        listener.accept()


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_attempt(run, attempt, targets):
  source, error = ATTEMPTS[attempt]
  check(run(source.format(**targets) if "{" in source else source), error)


def check(outcome, errors):
  assert outcome.status == "error", outcome
  assert outcome.stdout == ""
  assert outcome.stderr.splitlines()[-1].startswith(tuple(errors.split("|")))


CALLS = {  # of the C library, all of which say -1 and EPERM
  "user namespace": "libc.unshare(0x10000000)",
  "mount namespace": "libc.unshare(0x00020000)",
  "clone into a user namespace": "libc.syscall({clone}, 0x10000000 | 17, None, None, None, None)",
  "mount": "libc.mount(b'tmpfs', b'/scratch', b'tmpfs', 0, None)",
  "remount": "libc.mount(None, b'/', None, 0x1020, None)",
  "umount": "libc.umount2(b'/empty', 2)",
  "pivot_root": "libc.syscall({pivot_root}, b'.', b'.')",
  "setns": "libc.setns(0, 0)",
  "ptrace of the init": "libc.ptrace(16, 1, None, None)",
  "read the init's memory": "libc.process_vm_readv(1, None, 0, None, 0, 0)",
  "socket": "libc.socket(2, 1, 0)",
  "unix socket": "libc.socket(1, 1, 0)",
  "keys": "libc.syscall({keyctl}, 0, -3, 0)",
  "bpf": "libc.syscall({bpf}, 0, None, 0)",
  "io_uring": "libc.syscall(425, 1, None)",
  "performance counters": "libc.syscall({perf_event_open}, None, 0, -1, -1, 0)",
  "fsopen": "libc.syscall(430, b'tmpfs', 0)",
  "kernel log": "libc.klogctl(3, None, 0)",
  "reboot": "libc.reboot(0x1234567)",
  "personality": "libc.personality(0x0400000)",
}


def test_calls(run):
  from qwen3_jax.sandbox.seccomp import BY_ARGUMENT, DENIED

  column = ("x86_64", "aarch64").index(os.uname().machine)
  numbers = {name: pair[column] for name, pair in {**DENIED, **BY_ARGUMENT}.items()}
  source = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
  for name, call in CALLS.items():
    source += f"ctypes.set_errno(0); print({name!r}, {call.format(**numbers)}, ctypes.get_errno())\n"
  assert run(source).stdout.splitlines() == [f"{name} -1 1" for name in CALLS]


def test_unknown_and_foreign_calls(run):
  """Those newer than the filter do not exist; those of x86_64's other conventions do not either, or kill."""
  source = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.syscall({}), ctypes.get_errno())"
  assert run(source.format("470, 0")).stdout == "-1 38\n"
  assert run(source.format("435, 0, 0")).stdout == "-1 38\n"
  if os.uname().machine == "x86_64":
    assert run(source.format("0x40000000 + 39")).stdout == "-1 38\n"
    int80 = """
      import ctypes, mmap
      code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
      code.write(bytes.fromhex("b814000000cd80c3"))  # getpid of 32 bits
      print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
    """
    assert run(int80).status == "killed"


def test_no_capabilities(run):
  source = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    print(libc.capget(header, data), list(data))
    print(sum(libc.prctl(23, i, 0, 0, 0) == 1 for i in range(64)))  # of the bounding set
    print(libc.prctl(39, 0, 0, 0, 0), libc.prctl(21, 0, 0, 0, 0))  # no_new_privs, seccomp
  """
  assert run(source).stdout == "0 [0, 0, 0, 0, 0, 0]\n0\n1 2\n"


def test_environment(run, monkeypatch):
  monkeypatch.setenv("SECRET", "in the environment")
  outcome = run("import os; print(sorted(os.environ)); print(os.getcwd(), os.listdir())")
  assert outcome.stdout == "['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'PATH', 'TMPDIR']\n/scratch []\n"


def test_identity(run):
  source = "import os; print(os.getpid(), os.getppid(), os.uname().nodename, os.getuid() == os.geteuid() != 0)"
  assert run(source).stdout == "2 1 sandbox True\n"


def test_all_that_can_be_read(run):
  """Nothing but the interpreter, its libraries and what they need."""
  outcome = run("""
    import os, sys
    for folder, folders, files in os.walk("/"):
      if folder == sys.prefix + "/lib/python%d.%d" % sys.version_info[:2]:
        folders.clear()
        continue
      for name in files:
        path = os.path.join(folder, name)
        if ".so" not in name and path != sys.executable and not path.startswith(("/usr/share/zoneinfo/", sys.prefix)):
          print(path)
  """)
  seen = set(outcome.stdout.split())
  assert outcome.status == "ok"
  assert seen <= {"/program.py", "/dev/null", "/dev/urandom", "/dev/random", "/etc/ld.so.cache"}
  assert "/program.py" in seen
