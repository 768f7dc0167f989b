"""The launcher of sweeps through the real XManager, where it is installed; the jobs are shell commands.

What gathers the results is the same as for local sweeps, and tested with them.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_jax.sweeps import units
from qwen3_jax.sweeps.units import DONE, FAILED, NOT_STARTED, UNFINISHED, Sweep, WorkUnit

pytest.importorskip("xmanager", reason="the extra `launch` is not installed")
ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, sys
from pathlib import Path
from absl import app
from launch import xmanager_sweep
from qwen3_jax.sweeps import units

def main(argv):
  print(asyncio.run(xmanager_sweep.run("a title", units.read(Path(argv[1])).units, parallel=2)))

app.run(main)
"""


def make_sweep(folder, commands):
  (folder / "home").mkdir()
  found = [WorkUnit(folder / "units" / str(i), {"number": i}, command) for i, command in enumerate(commands)]
  units.write(Sweep(folder, "experiments/x.py", (), "loss", False, found))
  return found


def launch(folder):
  environment = os.environ | {"HOME": str(folder / "home"), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
  command = [sys.executable, "-c", PROGRAM, str(folder)]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_six_work_units(tmp_path):
  """Quotes and spaces arrive as they are; a failure does not stop the others; at most two run at a time."""
  script = (
    f'cd {tmp_path}; mkdir run-$0; ls -d run-* | wc -l; sleep 0.2; rmdir run-$0; echo "$1"; [ $0 != 3 ] || exit 7'
  )
  found = make_sweep(tmp_path, [["sh", "-c", script, str(number), "a 'b' $c"] for number in range(6)])
  found[5].status = DONE
  found[5].write()
  process = launch(tmp_path)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0 and "False" in out, out + err
  again = units.read(tmp_path).units
  assert [unit.status for unit in again] == [DONE, DONE, DONE, FAILED, DONE, DONE]
  assert [unit.exit_status for unit in again] == [0, 0, 0, 7, 0, None]
  assert not again[5].output.exists()  # was done before
  printed = [unit.output.read_text().splitlines() for unit in again[:5]]
  assert all(lines[1:] == ["a 'b' $c"] for lines in printed)
  assert max(int(lines[0]) for lines in printed) <= 2
  assert json.loads((again[0].folder / "work_unit.json").read_text())["seconds"] > 0.1
  # XManager itself has one experiment with the five work units that it ran.
  with sqlite3.connect(tmp_path / "home" / ".xmanager" / "experiments.sqlite3") as database:
    assert database.execute("select Experiment_Title from Experiment").fetchall() == [("a title",)]
    assert database.execute("select count(*) from Work_Unit").fetchone() == (5,)


def test_sigterm_is_passed_on_and_nothing_more_starts(tmp_path):
  stage = 'echo \'{"pipeline": ["s1"]}\' > config.json; echo ready'
  script = f"cd {tmp_path}/units/$0; {stage}; trap 'sleep 0.5; echo told; exit 0' TERM; while :; do sleep 0.1; done"
  found = make_sweep(tmp_path, [["sh", "-c", script, str(number)] for number in range(3)])
  process = launch(tmp_path)
  deadline = time.monotonic() + 100
  while not all(unit.output.exists() and "ready" in unit.output.read_text() for unit in found[:2]):
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=100)
  assert process.returncode == 0 and "True" in out, out + err
  assert [unit.output.read_text() for unit in found[:2]] == ["ready\ntold\n"] * 2  # it waited for them
  assert [unit.status for unit in units.read(tmp_path).units] == [UNFINISHED, UNFINISHED, NOT_STARTED]
