"""A run of several models: a student beside the model that teaches it, two stages from one start, and evaluations."""

import json
import math

import pytest
import run_helpers
from run_helpers import finish, series

from qwen3_jax.config import stage_model, stages_before, teacher_model
from qwen3_jax.config_checks import ConfigError, validate
from qwen3_jax.config_loading import load
from qwen3_jax.run_evaluations import check_evaluations
from qwen3_jax.stages.cost import later_share, stage_flops
from qwen3_jax.stages.kinds import trained_tokens
from qwen3_jax.workdir import Workdir

EXPERIMENT = run_helpers.ROOT / "experiments" / "miniature.py"
STUDENT = ("student_s1", "student_off_policy", "student_on_policy", "student_rl")


def test_stages_build_on_those_of_the_same_model():
  config = load(f"{EXPERIMENT}:", [])
  assert stages_before(config, "s1") == [] == stages_before(config, "student_s1")
  assert stages_before(config, "fusion") == ["s1", "s2", "s3", "cold_start", "reasoning_rl"]
  assert stages_before(config, "student_on_policy") == ["student_s1", "student_off_policy"]
  # Not student_on_policy, which is between.
  assert stages_before(config, "student_rl") == ["student_s1", "student_off_policy"]
  student, teacher = stage_model(config, "student_rl"), teacher_model(config, "student_on_policy", "large")
  assert student.hidden_size == 80 and teacher == stage_model(config, "fusion")


def test_what_stages_cost_beside_each_other():
  config = load(f"{EXPERIMENT}:", [])
  per_token = {name: stage_flops(config, name) / trained_tokens(config.stages[name]) for name in config.pipeline}
  assert per_token["s1"] == per_token["s2"] < per_token["s3"]  # whose sequences are longer
  assert per_token["student_off_policy"] < per_token["student_rl"] < per_token["reasoning_rl"]
  alone = load(f"{EXPERIMENT}:", ["stages.student_on_policy.teachers.large.path=stage:student_off_policy"])
  assert per_token["student_on_policy"] > stage_flops(alone, "student_on_policy") / trained_tokens(
    alone.stages.student_on_policy
  )
  whole = [stage_flops(config, name) for name in config.pipeline]
  assert math.isclose(later_share(config, "s1", config.pipeline[1:]), sum(whole[1:]) / whole[0])
  assert later_share(config, "student_rl", ()) == 0


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({"stages.student_rl.model": "studnt"}, "stages.student_rl.model='studnt': no such model. Did you mean 'student'?"),
    ({"stages.s3.after": "student_rl"}, "stages.s3.after='student_rl': no stage before it."),
    ({"stages.student_rl.after": "fusion"}, "stages.student_rl.after='fusion': a stage of another model"),
    ({"models.student.vocab_size": 100}, "larger than the embedding, models.student.vocab_size=100"),
    ({"models.student.hidden": 100}, "models.student.hidden"),
    ({"mesh.tensor": 3}, "models.student.num_heads=4: cannot be divided over mesh.tensor=3"),
    ({"data.written.answers.thinking_share": 1.5}, "data.written.answers.thinking_share=1.5: must lie in [0, 1]"),
    (
      {"evaluations.fusion.stage": "fusoin"},
      "evaluations.fusion.stage='fusoin': no such stage. Did you mean 'fusion'?",
    ),
    ({"data.written.answers.stage": "fusoin"}, "data.written.answers.stage='fusoin': no such stage. Did you mean 'fus"),
  ],
)
def test_what_fits_no_model_is_refused(changes, expected):
  with pytest.raises(ConfigError) as error:
    validate(load(f"{EXPERIMENT}:", [f"{key}={value}" for key, value in changes.items()]))
  assert expected in str(error.value)


def test_a_student_in_the_run_of_its_teacher(tmp_path):
  """Of two processes, the first of which writes what the student reads and evaluates; what is left then, of one."""
  material = run_helpers.Material(tmp_path)
  off_policy = load(f"{EXPERIMENT}:tiny", []).stages.student_off_policy
  changes = {
    "log_every": 1,
    "pipeline": ("s1", *STUDENT),
    "models.student.hidden_size": 32,
    "stages.s1.tokens": 4 * 1024,
    "stages.student_s1.tokens": 2 * 1024,
    **{f"stages.{name}.steps": 2 for name in STUDENT[2:]},
    "stages.student_off_policy.tokens": 2 * off_policy.batch_size * off_policy.sequence_length,
  }
  run = Workdir(tmp_path / "run")
  start = lambda processes=1: finish(
    material.start_tiny("miniature", run.path, changes | {"cpu_devices": 2 // processes}, processes)
  ).check()
  assert "Evaluating stage 'student_on_policy'" in start(processes=2).out
  width = lambda name: json.loads((run.stage(name) / "config.json").read_text())["hidden_size"]
  assert width("s1") == 64 and {width(name) for name in STUDENT} == {32}

  settings = json.loads(run.config.read_text())["stages"]
  per_step = {name: settings[name]["batch_size"] * settings[name]["sequence_length"] for name in STUDENT}
  first = per_step["student_s1"]
  learns = settings["student_s1"]["tokens"] // first * first
  begins = learns + 2 * per_step["student_off_policy"]
  seen = {name: series(run.path, name, "tokens_seen")[1] for name in STUDENT}
  assert seen["student_s1"] == first  # from scratch, not from s1
  assert seen["student_off_policy"] == learns + per_step["student_off_policy"]
  for name in STUDENT[2:]:  # both from the off-policy student
    assert seen[name] == begins + per_step[name]

  measured = run.path / "evaluations" / "student.json"
  before = json.loads(measured.read_text())
  assert [task.partition(":")[0] for task in before] == ["modes"]
  measured.unlink()  # as if the run had been killed before it
  assert "Evaluating stage 'student_on_policy'" in start().out
  again = json.loads(measured.read_text())
  assert again == before
  assert "Evaluating" not in start().out


def test_evaluations_are_checked_before_anything_runs(tmp_path):
  change = {"evaluations.student.tasks": ("mods:cups:8",)}
  ended = finish(run_helpers.Material(tmp_path).start_tiny("miniature", tmp_path / "run", change))
  assert ended.code == 1 and "'mods' is no kind of task; did you mean 'modes'?" in ended.err, ended.err
  assert not (tmp_path / "run" / "stages").exists()


def test_only_what_is_left_to_measure_is_checked(tmp_path):
  workdir = Workdir(tmp_path)
  name = "evaluations.student"
  config = load(f"{EXPERIMENT}:", [f"{name}.options=('--sample=3x',)", "evaluations.fusion.tasks=('modes:cups:8',)"])
  check_evaluations(config, ["s1", "fusion"], workdir)
  with pytest.raises(ConfigError, match=f"{name}: "):
    check_evaluations(config, list(config.pipeline), workdir)
  measured = tmp_path / "evaluations" / "student.json"
  measured.parent.mkdir()
  measured.write_text(json.dumps({task: {} for task in config.evaluations.student.tasks}))
  check_evaluations(config, list(config.pipeline), workdir)
