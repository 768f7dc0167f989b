"""A whole run of distillation, in real processes: off-policy, then on-policy in two modes."""

import run_helpers
from run_helpers import curves, finish, series, wait_until

from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.problems.cups import cups_problems, places

# Everything that has a state or a choice. The teacher is an earlier stage of the run.
CHANGES = {
  "log_every": 1,
  "checkpoint.every": 3,
  "stages.off_policy.tokens": 4 * 8 * 512,
  "stages.on_policy.steps": 7,
  "stages.on_policy.minibatches": 2,
  "stages.on_policy.micro_batches": 2,
  "stages.on_policy.evaluate_every": 7,
  "stages.on_policy.rollout.staleness": 1,
  "stages.on_policy.rollout.modes.plain": 0.0,
  "stages.on_policy.rollout.modes.think": 0.5,
  "stages.on_policy.rollout.modes.no_think": 0.5,
  "stages.on_policy.distillation.divergence": "jsd",
  "stages.on_policy.problems": "cups:40:2:1-2",
  "stages.on_policy.validation_problems": "cups:4:3:1-2",
}


def start(material, workdir, **changes):
  return material.start_tiny("miniature_distillation", workdir, CHANGES | changes)


def make_material(tmp_path):
  material = run_helpers.Material(tmp_path)
  texts = [f"{problem.prompt} {' '.join(places(problem))}" for problem in cups_problems(200, 0)]
  train_sentencepiece(texts, material.tokenizer / "tokenizer.model", 310)
  return material, {"tokenizer.path": material.tokenizer, "data.cache": material.cache}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
  material, paths = make_material(tmp_path)
  finish(start(material, tmp_path / "whole", **paths)).check()
  workdir = tmp_path / "killed"
  logged = lambda: max(series(workdir, "on_policy", "loss"), default=0)
  process = start(material, workdir, **paths)
  assert wait_until(lambda: logged() >= 4, process), finish(process)  # one after a checkpoint, within a batch
  process.kill()
  assert finish(process).code < 0
  finish(start(material, workdir, **paths)).check()
  stages = ["off_policy", "on_policy"]
  whole, resumed = (curves(folder, stages)["on_policy"] for folder in (tmp_path / "whole", workdir))
  assert resumed == whole

  of = lambda name: [line[name] for line in whole if name in line]
  assert of("rollout/staleness") == [0, 0, 1, 1, 1, 1, 1]
  # The student is its teacher at first, and differs by what rounding makes of that; then it moves away.
  assert abs(of("loss")[0]) < 1e-6 < max(of("loss")[2:]) and all(loss > -1e-6 for loss in of("loss"))
  assert any("validation/pass@1/no_think" in line for line in whole)


def test_a_missing_teacher_ends_the_run_before_anything_is_trained(tmp_path):
  material, paths = make_material(tmp_path)
  missing = {"stages.on_policy.teachers.large.path": tmp_path / "nowhere"}
  ended = finish(start(material, tmp_path / "run", **paths, **missing))
  assert f"stages.on_policy.teachers.large.path='{tmp_path}/nowhere'" in ended.error and "no such folder" in ended.error
  assert not (tmp_path / "run" / "stages" / "off_policy" / "checkpoints").exists()
