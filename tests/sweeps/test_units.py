"""Work units: their commands say what the study says, and their folders remember how they ended."""

import json

import pytest

from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import load
from qwen3_jax.sweeps import units
from qwen3_jax.sweeps.study import Study, grid
from qwen3_jax.sweeps.units import DONE, FAILED, NOT_STARTED, UNFINISHED, SweepError

BASE = "experiments/miniature.py:post=none,stage=s1,tiny"
RATE = "config.stages.s1.optimizer.peak_lr"


def config_of(unit):
  """The config that the unit's command runs, and its work directory."""
  flags = unit.command[3:]
  (path,) = [flag.removeprefix("--config=") for flag in flags if flag.startswith("--config=")]
  (workdir,) = [flag.removeprefix("--workdir=") for flag in flags if flag.startswith("--workdir=")]
  overrides = [flag.removeprefix("--config.") for flag in flags if flag.startswith("--config.")]
  assert unit.command[1:3] == ["-m", "qwen3_jax.main"] and len(flags) == 2 + len(overrides)
  return load(path, overrides), workdir


def test_commands_say_what_the_study_says(tmp_path):
  study = grid({"model": ("dense", "moe"), RATE: (0.003, 0.01)})
  sweep = units.plan(BASE, ["log_every=3"], study, tmp_path)
  assert [unit.name for unit in sweep.units] == [
    f"model={model},peak_lr={rate}" for model in ("dense", "moe") for rate in (0.003, 0.01)
  ]
  for unit, parameters in zip(sweep.units, study.parameters):
    config, workdir = config_of(unit)
    assert (config.model.num_experts > 0) == (parameters["model"] == "moe")
    assert config.stages.s1.optimizer.peak_lr == parameters[RATE]
    assert config.stage == "s1" and config.log_every == 3 and config.name.endswith("tiny")
    assert workdir == str(tmp_path / "units" / unit.name)
    assert config.data.cache == str(tmp_path / "data")  # prepared once for all
  assert not list(tmp_path.iterdir())  # planning writes nothing


def test_a_parameter_replaces_the_argument_of_its_name(tmp_path):
  sweep = units.plan("experiments/miniature.py:model=moe,post=none,tiny", [], grid({"model": ("dense",)}), tmp_path)
  assert config_of(sweep.units[0])[0].model.num_experts == 0
  kept = units.plan("experiments/miniature.py:post=none", ["data.cache=/data"], grid({"config.seed": (1,)}), tmp_path)
  assert config_of(kept.units[0])[0].data.cache == "/data"


def test_expanded_parameters(tmp_path):
  study = Study([{"size": 2}], expand=lambda config, own: {"config.log_every": config.log_every * own["size"]})
  (unit,) = units.plan(BASE, ["log_every=7"], study, tmp_path).units
  assert unit.name == "size=2" and config_of(unit)[0].log_every == 14


def test_problems_of_all_work_units_at_once(tmp_path):
  study = grid({"config.stages.s1.batch_sise": (1,), "config.seed": (1, -2)})
  with pytest.raises(ConfigError) as raised:
    units.plan(BASE, [], study, tmp_path)
  assert len(raised.value.problems) == 3  # two misspelt keys, one seed below 0
  assert "batch_sise=1,seed=-2: seed=-2: must be at least 0" in raised.value.problems
  assert "Did you mean 'stages.s1.batch_size'?" in raised.value.problems[0]
  with pytest.raises(SweepError, match="the same: seed=1"):
    units.plan(BASE, [], Study([{"config.seed": 1}, {"config.seed": 1}]), tmp_path)


def test_names_of_folders(tmp_path):
  names = units.short_names(["config.stages.s1.optimizer.peak_lr", "config.stages.s2.optimizer.peak_lr", "config.seed"])
  assert list(names.values()) == ["seed", "s1.optimizer.peak_lr", "s2.optimizer.peak_lr"]
  problems = ["cups:10:1", "cups/10/1"]  # the same but for what a folder's name cannot hold
  study = Study([{"config.name": name} for name in [*problems, "x" * 300, "x" * 301]])
  folders = [unit.name for unit in units.plan(BASE, [], study, tmp_path).units]
  assert len(set(folders)) == 4 and all("/" not in name and len(name) < 120 for name in folders)


def test_status_survives_and_commands_must_agree(tmp_path):
  study = grid({"config.seed": (1, 2)})
  sweep = units.plan(BASE, [], study, tmp_path)
  units.write(sweep)
  assert [unit.status for unit in units.read(tmp_path).units] == [NOT_STARTED] * 2
  sweep.units[0].started()
  assert units.read(tmp_path).units[0].status == UNFINISHED
  sweep.units[0].ended(0, 2.5)
  sweep.units[0].ended(0, 0.5)
  sweep.units[1].ended(-9, 1.0)
  again = units.plan(BASE, [], grid({"config.seed": (0, 1, 2)}), tmp_path)  # one more
  assert [(u.name, u.status, u.seconds) for u in again.units] == [
    ("seed=0", NOT_STARTED, 0.0),
    ("seed=1", DONE, 3.0),
    ("seed=2", FAILED, 1.0),
  ]
  with pytest.raises(SweepError, match=r"seed=1: was run with less, is now asked for with --config\.log_every=2"):
    units.plan(BASE, ["log_every=2"], study, tmp_path)
  units.write(units.plan(BASE, [], grid({"config.seed": (3,)}), tmp_path))
  assert [unit.name for unit in units.read(tmp_path).units] == ["seed=3", "seed=1", "seed=2"]  # nothing is forgotten


def test_exit_status_0_is_not_yet_done(tmp_path):
  """A run that SIGTERM stopped ends with 0, too."""
  (unit,) = units.plan(BASE, [], grid({"config.seed": (1,)}), tmp_path).units
  (unit.folder / "stages" / "s1").mkdir(parents=True)
  (unit.folder / "config.json").write_text(json.dumps({"pipeline": ["s1", "s2"], "stage": ""}))
  unit.ended(0, 1.0)
  assert unit.status == UNFINISHED and units.unfinished_stages(unit.folder) == ["s1", "s2"]
  (unit.folder / "stages" / "s1" / "DONE").write_text("{}")
  assert units.unfinished_stages(unit.folder) == ["s2"]
  (unit.folder / "config.json").write_text(json.dumps({"pipeline": ["s1", "s2"], "stage": "s1"}))
  unit.ended(0, 1.0)
  assert unit.status == DONE


def test_folders_that_hold_no_sweep(tmp_path):
  with pytest.raises(SweepError, match=r"has no sweep.json; expected the --workdir of launch.local_sweep"):
    units.read(tmp_path)
  (tmp_path / "sweep.json").write_text('{"units": ')
  with pytest.raises(SweepError, match="damaged"):
    units.read(tmp_path)
