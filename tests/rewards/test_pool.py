"""Judges that hang, crash, grow or are killed: their own verdicts fail, and no others."""

import concurrent.futures
import os
import signal
import sys
import time

import pytest

from qwen3_jax.rewards.pool import Pool

JUDGE = """
import ctypes, os, signal, sys, time

def prepare(payload):
  if payload == "no import":
    raise ImportError("not here")

def judge(payload):
  if payload == "hang":
    for number in range(1, 60):
      if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
        signal.signal(number, signal.SIG_IGN)
    while True:
      pass
  if payload == "sleep":
    time.sleep(60)
  if payload == "exit":
    os._exit(0)
  if payload == "crash":
    ctypes.string_at(0)
  if payload == "grow":
    data = []
    while True:
      data.append(bytearray(1 << 24))
  if payload == "map":
    bytearray(1 << 40)
  if payload == "raise":
    raise RuntimeError("no")
  if payload == "recurse":
    judge2 = lambda depth: judge2(depth + 1)
    judge2(0)
  if payload == "print":
    print("{}"); sys.stdout.flush(); os.write(1, b"{}\\n")
  if payload == "kill the pool":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
  if payload == "long":
    return {"said": "x" * (1 << 21)}
  return {"said": payload, "pid": os.getpid(), "pool": os.getppid()}
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
  (tmp_path / "hostile_judge.py").write_text(JUDGE)
  monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
  pool = Pool("hostile_judge", workers=2, memory=1 << 28)
  yield pool
  pool.close()


def test_what_goes_wrong_is_said_and_hurts_nobody(pool):
  expected = {
    "hang": "no verdict within 0.3 s",
    "sleep": "no verdict within 0.3 s",
    "exit": "ended with exit code 0",
    "crash": "SIGSEGV",
    "grow": "more than 256 MiB",
    "map": "more than 256 MiB",
    "raise": "RuntimeError: no",
    "recurse": "RecursionError",
    "no import": "ImportError: not here",
    "kill the pool": "died twice",
    "long": "the verifier's process ended",
  }
  payloads = [word for name in expected for word in (name, f"good {name}")] + ["print"]
  # The first call starts a process; nothing of that counts against an answer's time.
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    judged = threads.map(lambda word: pool.run(word, 0.3 if word in ("hang", "sleep") else 20), payloads)
    replies = dict(zip(payloads, judged))
  for name, reason in expected.items():
    assert reason in replies[name]["failed"]
    assert replies[f"good {name}"]["said"] == f"good {name}"
  assert replies["print"]["said"] == "print"


def test_a_hanging_judge_is_gone_in_time(pool):
  first = pool.run("first", 20)
  start = time.monotonic()
  pool.run("hang", 0.3)
  assert time.monotonic() - start < 60
  second = pool.run("second", 20)
  assert second["pool"] == first["pool"]  # the process that holds the imports goes on
  assert second["pid"] != first["pid"]
  assert _children(first["pool"]) == []


def test_a_killed_process_is_replaced(pool):
  first = pool.run("first", 20)
  os.kill(first["pool"], signal.SIGKILL)
  second = pool.run("second", 20)
  assert second["said"] == "second" and second["pool"] != first["pool"]
  pool.close()
  with pytest.raises(ProcessLookupError):
    os.kill(second["pool"], 0)
  assert pool.run("third", 20)["said"] == "third"


def test_workers():
  with pytest.raises(ValueError, match="workers=0"):
    Pool("any", workers=0)


def _children(pid):
  with open(f"/proc/{pid}/task/{pid}/children") as file:
    return file.read().split()
