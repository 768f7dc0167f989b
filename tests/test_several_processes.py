"""One run on changing numbers of real processes, stopped and killed on the way, against one that nothing disturbed."""

import dataclasses
import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import run_helpers
from run_helpers import Ended, curves, series

STEPS = 15
BATCH = 16
EXPERIMENT = "dense_0_6b:stage=s1"
EVERY = 5  # steps between checkpoints, and between evaluations
OPTIONS = {
  **{f"stages__{stage}__batch_size": BATCH for stage in run_helpers.STEPS},
  **{f"stages__{stage}__tokens": STEPS * BATCH * run_helpers.LENGTHS[stage] for stage in run_helpers.STEPS},
  "stages__s1__evaluate_every": EVERY,
  "stages__s1__sample_prompts": ("def",),
  "checkpoint__every": EVERY,
}
EXACT = ("data_checksum", "tokens_seen", "learning_rate", "skipped_steps")


@dataclasses.dataclass(frozen=True)
class Part:
  """One start of the run."""

  processes: int
  first: int  # the steps whose losses it logged
  last: int
  ended: Ended
  seconds: float = 0.0  # from the signal to the end

  def of(self, process: int) -> list[str]:
    return [line.partition("] ")[2] for line in self.ended.out.splitlines() if line.startswith(f"[{process}] ")]


class Run:
  def __init__(self, material, workdir: Path):
    self.material, self.workdir = material, workdir

  def logged(self) -> int:
    return max(series(self.workdir, "s1", "loss"), default=0)

  def saved(self) -> list[int]:
    return sorted(int(path.name) for path in (self.workdir / "stages/s1/checkpoints").iterdir() if path.name.isdigit())

  def start(self, processes: int, **mesh: int) -> subprocess.Popen[str]:
    options = OPTIONS | {"cpu_devices": 8 // processes} | {f"mesh__{axis}": size for axis, size in mesh.items()}
    command = self.material.command(EXPERIMENT, self.workdir, **options)
    return self.material.process(run_helpers.several(processes, command))

  def part(self, processes: int, number: int | None = None, victim: int = 0, steps: int = 0, **mesh: int) -> Part:
    """Starts it and, after `steps` steps, sends the signal `number` to one process; without one, waits for the end."""
    before = self.saved()[-1] if (self.workdir / "stages/s1/checkpoints").exists() else 0
    process = self.start(processes, **mesh)
    if number is not None:
      assert run_helpers.wait_until(lambda: self.logged() >= before + steps, process), run_helpers.finish(process)
      os.kill(process_of(process, victim) if processes > 1 else process.pid, number)
    signalled = time.monotonic()
    ended = run_helpers.finish(process)
    return Part(processes, before + 1, self.logged(), ended, time.monotonic() - signalled)


def process_of(launcher: subprocess.Popen[str], index: int) -> int:
  """Process id of the launcher's child with that number."""
  for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
    if f"JAX_PROCESS_ID={index}\0" in Path(f"/proc/{child}/environ").read_text():
      return int(child)
  raise AssertionError(f"no process {index}")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return run_helpers.make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def reference(material, tmp_path_factory):
  """One process with eight devices, from beginning to end."""
  run = Run(material, tmp_path_factory.mktemp("reference") / "run")
  run.part(1).ended.check()
  return run


@pytest.fixture(scope="module")
def disturbed(material, tmp_path_factory):
  """The same run in four parts."""
  run = Run(material, tmp_path_factory.mktemp("disturbed") / "run")
  parts = {
    "four": run.part(4, signal.SIGTERM, victim=2, steps=2),
    "one": run.part(1, signal.SIGTERM, steps=1),
    "killed": run.part(4, signal.SIGKILL, victim=1, steps=2),
    "last": run.part(2, fsdp=1, context=8),  # both processes hold all rows
  }
  return run, parts


def test_nobody_notices_in_the_numbers(reference, disturbed):
  """Four processes, one, four of which one is killed, two with another mesh: losses, data, samples are the same."""
  run, _ = disturbed
  expected, found = (curves(each.workdir, ["s1"])["s1"] for each in (reference, run))
  assert [line["step"] for line in found] == [line["step"] for line in expected]
  for a, b in zip(expected, found, strict=True):
    assert a.keys() == b.keys()
    for name, value in a.items():
      if name in EXACT:
        assert b[name] == value, (a["step"], name)
      elif "accuracy" not in name:
        # Norms of gradients are far worse conditioned than losses: one process with one device is as far off.
        np.testing.assert_allclose(b[name], value, rtol=1e-3 if "norm" in name else 1e-6, err_msg=f"{name} {a['step']}")
  samples = [(each.workdir / "stages/s1/samples.jsonl").read_text() for each in (reference, run)]
  assert samples[0] == samples[1] and samples[0].count("\n") == STEPS // EVERY


def test_four_processes_give_the_losses_of_one(reference, disturbed):
  run, parts = disturbed
  losses = [series(each.workdir, "s1", "loss") for each in (reference, run)]
  part = parts["four"]
  assert part.first == 1 and 2 <= part.last < STEPS
  for step in range(1, part.last + 1):
    assert losses[1][step] == pytest.approx(losses[0][step], rel=1e-6)


def test_a_notice_to_one_process_stops_all_at_one_step(disturbed):
  _, parts = disturbed
  part = parts["four"]
  assert part.ended.code == 0, part.ended
  assert part.of(0)[-1] == f"stage 's1' stopped at step {part.last} of {STEPS} and saved its state." + (
    " The same command continues."
  )
  assert parts["one"].first == part.last + 1  # from what all of them saved
  assert not [line for i in range(4) for line in part.of(i) if line.startswith("error:")]


def test_a_killed_process_ends_the_others(disturbed):
  _, parts = disturbed
  part = parts["killed"]
  assert part.ended.code == 128 + signal.SIGKILL
  assert "process 1 was killed by SIGKILL" in part.ended.err
  assert "killing" not in part.ended.err  # the others ended by themselves
  assert part.seconds < 60
  for i in (0, 2, 3):
    errors = [line for line in part.of(i) if line.startswith("error: ")]
    expected = r"another process.* The same command continues from "  # its own, and what another may have told it
    assert errors and all(re.search(expected, error) for error in errors), part.of(i)
  assert parts["last"].first <= part.last + 1
  parts["last"].ended.check()


def test_only_the_first_process_writes(disturbed):
  run, parts = disturbed
  events = list((run.workdir / "tensorboard" / "s1").iterdir())
  assert len(events) == len(parts)  # one file a start
  assert not [line for i in (1, 2, 3) for line in parts["four"].of(i) if "loss" in line]
  assert (run.workdir / "report.html").exists()


def test_a_finished_run_starts_no_processes(disturbed):
  run, _ = disturbed
  before = {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")}
  assert "Gloo" not in run.part(2).ended.check().out
  assert {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")} == before


def test_a_second_run_is_refused_on_every_process(disturbed, material, tmp_path):
  """The first process finds the lock taken; the others would wait for it."""
  run, _ = disturbed
  workdir = shutil.copytree(run.workdir, tmp_path / "run")
  (workdir / "stages/s1/DONE").unlink()
  with open(workdir / ".lock", "r+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    part = Run(material, workdir).part(2)
  assert part.ended.code == 1 and part.seconds < 60
  assert next(line for line in part.of(0) if "error: " in line).startswith(f"error: workdir={workdir}: in use by")
  assert next(line for line in part.of(1) if "error: " in line).startswith("error: process 0 failed: workdir=")
