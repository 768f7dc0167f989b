"""The launcher of sweeps: with commands that take no time, and once for real."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_runs
from run_helpers import make_material

from launch.local_sweep import run
from qwen3_jax.loading import load_pretrained
from qwen3_jax.metrics import read_metrics
from qwen3_jax.sweeps import units
from qwen3_jax.sweeps.units import DONE, FAILED, NOT_STARTED, UNFINISHED, Sweep, WorkUnit
from qwen3_jax.workdir import Workdir

# Tests have devices, launchers have none: nothing of JAX runs in the process that forks.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork")
ROOT = Path(__file__).parents[2]


def make_units(folder, *scripts):
  """Work units that run shell scripts."""
  found = [WorkUnit(folder / "units" / str(i), {"number": i}, ["sh", "-c", text]) for i, text in enumerate(scripts)]
  for unit in found:
    unit.write()
  return found


def statuses(work_units):
  return [unit.status for unit in work_units]


def test_a_failure_does_not_stop_the_others(tmp_path, capsys):
  work_units = make_units(tmp_path, "echo one", "echo why >&2; exit 3", "kill -9 $$", "echo four")
  assert run(work_units) is False
  assert statuses(work_units) == [DONE, FAILED, FAILED, DONE]
  assert [unit.exit_status for unit in work_units] == [0, 3, -9, 0]
  assert [unit.output.read_text() for unit in work_units] == ["one\n", "why\n", "", "four\n"]
  record = json.loads((work_units[1].folder / "work_unit.json").read_text())
  assert record["parameters"] == {"number": 1} and record["status"] == "failed"
  assert "[1] failed" in capsys.readouterr().out


def test_done_ones_are_skipped_and_the_others_run_again(tmp_path):
  run(make_units(tmp_path, "echo x", "[ -e ../again ] && echo y"))
  (tmp_path / "again").touch()
  script = f"cd {tmp_path}/units; [ -e ../again ] && echo y"
  work_units = make_units(tmp_path, "echo x", script)
  work_units[0].status = DONE
  run(work_units)
  assert statuses(work_units) == [DONE, DONE]
  assert work_units[0].output.read_text() == "x\n"  # ran once


def test_work_units_run_side_by_side(tmp_path):
  """Each waits for the file that the other makes."""
  script = "touch {0}/{1}; for i in $(seq 100); do [ -e {0}/{2} ] && exit 0; sleep 0.1; done; exit 1"
  scripts = [script.format(tmp_path, mine, other) for mine, other in ((0, 1), (1, 0))]
  work_units = make_units(tmp_path, *scripts)
  run(work_units, parallel=2)
  assert statuses(work_units) == [DONE, DONE]


def test_sigterm_is_passed_on_and_nothing_more_starts(tmp_path):
  stage = 'mkdir -p stages; echo \'{"pipeline": ["s1"]}\' > config.json; echo ready'
  script = f"cd {tmp_path}/units/0; {stage}; trap 'echo told; exit 0' TERM; while :; do sleep 0.1; done"
  work_units = make_units(tmp_path, script, "echo never")
  units.write(Sweep(tmp_path, "experiments/x.py", (), "loss", False, work_units))
  program = (
    "import sys; from pathlib import Path; from launch import local_sweep; from qwen3_jax.sweeps import units\n"
    "print(local_sweep.run(units.read(Path(sys.argv[1])).units))"
  )
  process = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  output = tmp_path / "units" / "0" / "output.log"
  deadline = time.monotonic() + 60
  while not output.exists() or "ready" not in output.read_text():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=60)
  assert output.read_text() == "ready\ntold\n" and out.splitlines()[-1] == "True"
  found = [json.loads((tmp_path / "units" / str(i) / "work_unit.json").read_text())["status"] for i in range(2)]
  assert found == [UNFINISHED, NOT_STARTED]  # exit status 0 of a run that has more to do


def sweep(*arguments, environment=None, check=True):
  command = [sys.executable, "-m", "launch.local_sweep", *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=check)


def test_a_sweep_for_real(tmp_path):
  """An ablation with two arms: both finish, differ in what the study varies, see the same data, and are gathered."""
  material = make_material(tmp_path)
  experiment = tmp_path / "study.py"
  experiment.write_text(
    "from experiments.ablations.qk_norm import get_config\nfrom qwen3_jax.sweeps.study import grid\n"
    "STUDIES = {'norms': grid({'qk_norm': (True, False)})}\n"
  )
  # Without a cache of the caller's, the work units share the sweep's own.
  overrides = [flag for flag in small_runs.overrides(material) if "data.cache" not in flag]
  arguments = [f"--config={experiment}:stage=s1,tiny", f"--workdir={tmp_path / 'sweep'}", *overrides]
  listed = sweep(*arguments, "--dry_run").stdout
  assert listed.count("not started") == 2 and not (tmp_path / "sweep").exists()
  said = sweep(*arguments, environment=material.environment).stdout
  assert "2 of 2 work units done, 0 failed" in said
  found = units.read(tmp_path / "sweep")
  assert statuses(found.units) == [DONE, DONE]
  curves = [
    {line["step"]: line for line in read_metrics(Workdir(unit.folder).metrics("s1")) if "learning_rate" in line}
    for unit in found.units
  ]
  steps = sorted(curves[0])
  assert steps == sorted(curves[1]) == list(range(1, small_runs.STEPS + 1))
  assert all(curves[0][step]["data_checksum"] == curves[1][step]["data_checksum"] for step in steps)
  assert all(curves[0][step]["loss"] != curves[1][step]["loss"] for step in steps)
  models = [load_pretrained(unit.folder / "stages" / "s1", dtype="float32")[0] for unit in found.units]
  assert [model.config.qk_norm for model in models] == [True, False]
  assert curves[0][steps[-1]]["loss"] < curves[0][1]["loss"]
  assert len(list((tmp_path / "sweep" / "data").iterdir())) == 1  # prepared once, for all corpora are the same text
  report = subprocess.run(
    [sys.executable, "-m", "qwen3_jax.report", f"--sweep={tmp_path / 'sweep'}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert report.stdout.strip() == str(tmp_path / "sweep" / "report.html")
  table = (tmp_path / "sweep" / "report.md").read_text()
  assert "| qk\\_norm=true | done | true |" in table and "| best |" in table


def test_problems_before_anything_runs(tmp_path):
  arguments = [f"--config={small_runs.EXPERIMENT}:{small_runs.FORM}", f"--workdir={tmp_path / 'sweep'}"]
  wrong = sweep(*arguments, "--study=lrr", check=False)
  assert wrong.returncode == 1 and "Did you mean 'lr'?" in wrong.stderr and "Traceback" not in wrong.stderr
  assert not (tmp_path / "sweep").exists()
