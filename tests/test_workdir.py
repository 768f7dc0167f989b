"""The work directory: one run at a time, JSON files that are whole whenever they are read."""

import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from qwen3_jax.workdir import Workdir, WorkdirError, environment, read_json, read_json_lines, write_json

ROOT = pathlib.Path(__file__).parent.parent

# Holds the lock and has a child that outlives it, as a data worker would.
_HOLDER = """
import os, sys, time
from qwen3_jax.workdir import Workdir
with Workdir(sys.argv[1]):
  if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(120)
    os._exit(0)
  time.sleep(120)
"""

_WRITER = """
import sys, pathlib
from qwen3_jax.workdir import write_json
path, count = pathlib.Path(sys.argv[1]), 0
while True:
  count += 1
  write_json(path, {"count": count, "payload": [count] * 50_000, "end": count})
  if count == 2:
    print("ready", flush=True)
"""


def _start(script: str, argument: pathlib.Path) -> subprocess.Popen:
  command = [sys.executable, "-c", script, str(argument)]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
  holder = _start(_HOLDER, tmp_path)
  child = int(holder.stdout.readline())
  try:
    with pytest.raises(WorkdirError) as refused, Workdir(tmp_path):
      pass
    message = str(refused.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert f"process {holder.pid} on {os.uname().nodename}" in message

    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=10)
    with Workdir(tmp_path):  # although the forked child is still alive
      os.kill(child, 0)
      assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
  finally:
    holder.kill()
    os.kill(child, signal.SIGKILL)
    holder.stdout.close()
    holder.wait()


def test_the_lock_is_released_and_can_be_taken_again(tmp_path):
  for _ in range(2):
    with Workdir(tmp_path / "new"), pytest.raises(WorkdirError), Workdir(tmp_path / "new"):
      pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(WorkdirError, match=r"workdir=.*file/run: cannot be written"), Workdir(tmp_path / "file" / "run"):
    pass


def test_json_is_whole_while_it_is_replaced_and_after_a_kill(tmp_path):
  path = tmp_path / "DONE"
  delays = random.Random(0)
  for _ in range(2):
    writer = _start(_WRITER, path)
    try:
      assert writer.stdout.readline() == "ready\n"
      seen, end = set(), time.monotonic() + delays.uniform(0.5, 1.0)
      while time.monotonic() < end:
        seen.add(_whole(path))
    finally:
      writer.kill()
      writer.wait()
      writer.stdout.close()
    assert len(seen) > 1  # it was being replaced meanwhile
    assert _whole(path) >= max(seen)


def _whole(path: pathlib.Path) -> int:
  value = json.loads(path.read_text())
  assert value == {"count": value["count"], "payload": [value["count"]] * 50_000, "end": value["count"]}
  return value["count"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / "config.json"
  write_json(path, {"kept": True})
  with pytest.raises(TypeError):
    write_json(path, {"not JSON": object()})
  assert read_json(path) == {"kept": True}
  assert os.listdir(tmp_path) == ["config.json"]


def test_json_is_strict_and_keeps_text(tmp_path):
  path = tmp_path / "deep" / "value.json"
  write_json(path, {"loss": math.nan, "bounds": (-math.inf, math.inf), "text": "长城 <é>", "number": 0.1})
  text = path.read_text(encoding="utf-8")
  assert "长城" in text
  strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
  assert strict == {"loss": "NaN", "bounds": ["-Infinity", "Infinity"], "text": "长城 <é>", "number": 0.1}


def test_json_lines_leave_out_what_is_damaged(tmp_path):
  path = tmp_path / "lines.jsonl"
  assert list(read_json_lines(path)) == []
  separators = json.dumps({"text": "one\u2028line\u0085still"}, ensure_ascii=False)
  path.write_bytes(b'{"a": 1}\nnoise\n[1]\n\x00\x00\n' + separators.encode() + b'\n{"b": 2}\n{"text": "\xe9\x95')
  assert list(read_json_lines(path)) == [{"a": 1}, {"text": "one\u2028line\u0085still"}, {"b": 2}]


def test_stages_come_in_the_order_of_their_first_metrics(tmp_path):
  workdir = Workdir(tmp_path)
  assert workdir.stages() == []
  for name, started in (("a", 300.0), ("b", 100.0), ("c", 200.0)):
    workdir.stage(name).mkdir(parents=True)
    workdir.metrics(name).write_text(json.dumps({"step": 0, "time": started}) + "\n")
  assert workdir.stages() == ["b", "c", "a"]


def test_done_holds_the_last_step(tmp_path):
  workdir = Workdir(tmp_path)
  assert not workdir.is_done("s1")
  assert workdir.done("s1") is None
  workdir.mark_done("s1", 500, loss=2.5)
  assert workdir.is_done("s1")
  assert workdir.done("s1") == {"step": 500, "loss": 2.5}
  assert not workdir.is_done("s2")


def test_environment_names_versions_devices_and_command():
  import jax

  facts = environment()
  assert facts["jax"] == jax.__version__
  assert facts["devices"] == "8 x cpu"
  assert facts["command"] == " ".join(sys.argv)
  assert json.loads(json.dumps(facts)) == facts
