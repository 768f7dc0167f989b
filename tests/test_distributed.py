"""Several real processes without a model: who tells whom what, and how they end."""

import os
import re
import socket
import subprocess
import sys
import textwrap
import time

import jax
import pytest
import run_helpers

from qwen3_jax import distributed

PRELUDE = """
  import sys, time
  import jax
  from qwen3_jax import distributed

  jax.config.update("jax_num_cpu_devices", 1)
  distributed.start(heartbeat_seconds=6)
  me = jax.process_index()
"""


def launch(script, processes=2):
  """Exit status, lines and errors of `script` as so many processes."""
  code = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
  command = [sys.executable, "-m", "launch.local_processes", f"--processes={processes}", "--", sys.executable]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  ended = subprocess.run(
    [*command, "-c", code],
    capture_output=True,
    text=True,
    cwd=run_helpers.ROOT,
    env=environment,
    timeout=120,
    check=False,
  )
  lines = [line for line in ended.stdout.splitlines() if "Gloo" not in line]
  return ended.returncode, sorted(lines), ended.stderr


def test_the_first_works_and_all_know():
  script = """
    made = []
    answer = distributed.on_first_process(lambda: made.append(me) or {"rows": [1, 2], "by": me})
    slow = distributed.on_first_process(lambda: time.sleep(2) or "slow")
    print(made, answer, slow)
    distributed.stop()
  """
  code, lines, _ = launch(script, processes=3)
  assert code == 0
  assert lines == [f"[{i}] {[0] if i == 0 else []} {{'rows': [1, 2], 'by': 0}} slow" for i in range(3)]


def test_many_large_results_pass_through_the_store_and_do_not_stay():
  script = """
    from jax._src.distributed import global_state
    assert distributed.together()
    for number in range(40):
      text = distributed.on_first_process(lambda: [distributed.together(), str(number) * 3_000_000])
      assert text == [False, str(number) * 3_000_000]
    assert distributed.together()
    kept = global_state.client.key_value_dir_get("qwen3_jax/first")
    if me == 0:
      print(sum(len(value) for _, value in kept) < 18 * 6_000_000)
    distributed.stop()
  """
  code, lines, error = launch(script, processes=2)
  assert (code, lines) == (0, ["[0] True"]), error


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_ends_the_others_and_says_whose_it_was(failing):
  """The others wait for something that never comes, as in a collective."""
  script = f"""
    if me == {failing}:
      distributed.leave("data.cache='/x': no such folder")
    time.sleep(600)
  """
  started = time.monotonic()
  code, lines, _ = launch(script)
  assert code == 1 and time.monotonic() - started < 60
  assert lines == sorted(
    [
      f"[{failing}] error: data.cache='/x': no such folder",
      f"[{1 - failing}] error: process {failing} failed: data.cache='/x': no such folder",
    ]
  )


def test_an_unforeseen_error_keeps_its_traceback():
  script = """
    try:
      if me == 1:
        {}["key"]
      time.sleep(600)
    except KeyError as error:
      distributed.leave(error)
  """
  code, lines, _ = launch(script)
  assert code == 1
  assert "[1] KeyError: 'key'" in lines and any("Traceback" in line for line in lines)
  assert "[0] error: process 1 failed: KeyError: 'key'" in lines


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others(killed):
  """JAX notices: at once when process 0 is gone, after the heartbeat's time otherwise."""
  script = f"""
    import os, signal
    if me == {killed}:
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
  """
  started = time.monotonic()
  code, lines, err = launch(script)
  assert code == 137 and f"process {killed} was killed by SIGKILL" in err, (lines, err)
  assert time.monotonic() - started < 60
  errors = [line for line in lines if line.startswith(f"[{1 - killed}] error: ")]
  assert len(errors) == 1
  assert re.search(r"process 0 is gone|another process ended or was not heard of for 6 s", errors[0])
  assert errors[0].endswith("The same command continues from the last checkpoint.")


def test_a_process_that_does_not_come():
  script = """
    from qwen3_jax import distributed

    distributed._JOIN_SECONDS = 3
    distributed.start("localhost:{port}", 2, {me})
  """
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  for me in (0, 1):
    code = textwrap.dedent(script.format(port=port, me=me))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(run_helpers.ROOT)}
    ended = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert ended.returncode == 1
    given = f"coordinator_address=localhost:{port}, num_processes=2, process_id={me}"
    assert ended.stderr.splitlines()[-1] == f"error: joining the other processes ({given}): not all came within 3 s"


@pytest.mark.parametrize(
  "environment, arguments, error",
  [
    ({}, (), None),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, (), None),  # an interactive shell
    ({"JAX_NUM_PROCESSES": "1"}, (), None),
    ({}, ("host:1", 2, 2), "process_id=2: expected 0 to num_processes - 1 = 1"),
    ({}, ("host", 2, 1), "coordinator_address='host': expected host:port"),
    ({"JAX_NUM_PROCESSES": "2"}, (), "coordinator_address, process_id: not given, and JAX detects no cluster"),
    ({"JAX_PROCESS_ID": "one"}, (), "JAX_PROCESS_ID='one': expected a number"),
  ],
)
def test_alone_or_wrongly_described(environment, arguments, error, monkeypatch):
  for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  if error:
    with pytest.raises(distributed.StartError, match=re.escape(error)):
      distributed.start(*arguments)
    return
  distributed.start(*arguments)
  assert not jax.distributed.is_initialized()
  assert distributed.on_first_process(lambda: 3) == 3
  distributed.stop()
