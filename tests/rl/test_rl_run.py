"""A whole run with a stage of RL, in real processes: killed and started again, it is the run that nothing disturbed."""

import pytest
import run_helpers
from run_helpers import curves, finish, series, wait_until

from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.problems.cups import cups_problems, places

EXPERIMENT = "miniature_reasoning"
# Everything that has a state: two steps on a batch of rollouts, the next one made meanwhile, a reference model, waves.
CHANGES = {
  "pipeline": ("reasoning_rl",),
  "log_every": 1,
  "cpu_devices": 2,
  "checkpoint.every": 3,
  "stages.reasoning_rl.steps": 7,
  "stages.reasoning_rl.minibatches": 2,
  "stages.reasoning_rl.waves": 2,
  "stages.reasoning_rl.evaluate_every": 7,
  "stages.reasoning_rl.grpo.kl_coefficient": 0.01,
  "stages.reasoning_rl.entropy.target": 7.0,
  "stages.reasoning_rl.entropy.gain": 0.001,
  "stages.reasoning_rl.rollout.staleness": 1,
  "stages.reasoning_rl.format_reward": 0.1,
  "stages.reasoning_rl.problems": "cups:40:2:1-2",
  "stages.reasoning_rl.validation_problems": "cups:4:3:1-2",
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  material = run_helpers.Material(tmp_path_factory.mktemp("material"))
  texts = [f"{problem.prompt} {' '.join(places(problem))}" for problem in cups_problems(200, 0)]
  train_sentencepiece(texts, material.tokenizer / "tokenizer.model", 310)
  return material


def start(material, workdir, processes=1):
  changes = CHANGES | {"tokenizer.path": material.tokenizer, "cpu_devices": CHANGES["cpu_devices"] // processes}
  return material.start_tiny(EXPERIMENT, workdir, changes, processes=processes)


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
  """The work directory of a run of one process that nothing disturbed."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  finish(start(material, workdir)).check()
  return workdir


def test_a_killed_run_goes_on_as_if_nothing_had_happened(material, whole, tmp_path):
  workdir = tmp_path / "killed"
  logged = lambda: max(series(workdir, "reasoning_rl", "loss"), default=0)
  process = start(material, workdir)
  assert wait_until(lambda: logged() >= 4, process), finish(process)  # one after a checkpoint, within a batch
  process.kill()
  assert finish(process).code < 0
  finish(start(material, workdir)).check()
  undisturbed, resumed = (curves(folder, ["reasoning_rl"])["reasoning_rl"] for folder in (whole, workdir))
  assert resumed == undisturbed

  of = lambda name: [line[name] for line in undisturbed if name in line]
  assert len(of("rollout/reward")) == 7 and len(set(of("rollout/reward"))) > 1
  assert of("rollout/staleness") == [0, 0, 1, 1, 1, 1, 1]
  assert all(kl >= 0 for kl in of("kl")) and of("kl")[-1] > 0
  assert of("entropy_coefficient")[-1] > of("entropy_coefficient")[0] > 0
  assert of("validation/pass@1")[0] >= 0 and (whole / "report.html").exists()


def test_two_processes_are_one(material, whole, tmp_path):
  """Environments answer on the first alone; rollouts, rewards and losses are those of one process."""
  workdir = tmp_path / "run"
  finish(start(material, workdir, processes=2)).check()
  one_process, two_processes = (curves(folder, ["reasoning_rl"])["reasoning_rl"] for folder in (whole, workdir))
  assert [line.keys() for line in one_process] == [line.keys() for line in two_processes]
  for one, two in zip(one_process, two_processes, strict=True):
    for name, value in one.items():
      assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
