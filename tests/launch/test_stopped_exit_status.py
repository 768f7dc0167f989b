"""What launchers restart on: a run that SIGTERM stopped says that it has more to do."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import small_runs
from run_helpers import make_material

from qwen3_jax.workdir import Workdir

ROOT = Path(__file__).parents[2]


def test_a_stopped_run_ends_with_the_status_asked_for(tmp_path):
  material = make_material(tmp_path)
  command = [sys.executable, "-m", "qwen3_jax.main", f"--config={small_runs.EXPERIMENT}:{small_runs.FORM}"]
  command += [f"--workdir={tmp_path / 'run'}", "--stopped_exit_status=75"]
  command += small_runs.overrides(material, stages__s1__tokens=10**7)
  process = subprocess.Popen(command, cwd=ROOT, env=material.environment, stdout=subprocess.PIPE, text=True)
  workdir = Workdir(tmp_path / "run")
  metrics = workdir.metrics("s1")
  deadline = time.monotonic() + 300
  while not metrics.exists() or '"learning_rate"' not in metrics.read_text():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 75, out
  assert list(workdir.checkpoints("s1").iterdir()) and not workdir.is_done("s1")
