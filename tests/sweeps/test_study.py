"""Grids and random search against their definitions."""

import itertools

import numpy as np
import pytest

from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import load
from qwen3_jax.sweeps.studies import COMMON, find_study, scaled_learning_rates
from qwen3_jax.sweeps.study import Choice, LogUniform, Uniform, grid, random_search

FILE = """
from experiments.miniature import get_config
from qwen3_jax.sweeps.study import grid

STUDIES = {"own": grid({"config.seed": (4, 5)}, metric="loss")}
"""


def test_grid_is_every_combination():
  study = grid({"a": (1, 2), "b": ("x", "y", "z")}, metric="m", maximize=True)
  assert [(own["a"], own["b"]) for own in study.parameters] == list(itertools.product((1, 2), "xyz"))
  assert (study.metric, study.maximize) == ("m", True)


def test_seeds_multiply_the_work_units():
  study = grid({"a": (1, 2)})
  assert list(study.with_seeds(1).parameters) == [{"a": 1}, {"a": 2}]
  assert list(study.with_seeds(2).parameters) == [{"a": a, "config.seed": seed} for a in (1, 2) for seed in (0, 1)]


def test_random_search_draws_from_its_space():
  space = {"lr": LogUniform(1e-4, 1.0), "decay": Uniform(2.0, 4.0), "kind": Choice(("p", "q"))}
  drawn = random_search(space, trials=400, seed=3).parameters
  lr = np.log10([own["lr"] for own in drawn])
  assert -4 <= lr.min() and lr.max() <= 0 and abs(lr.mean() + 2) < 0.2  # uniform in [-4, 0]: mean -2, sd 1.15/20
  decay = np.array([own["decay"] for own in drawn])
  assert 2 <= decay.min() and decay.max() <= 4 and abs(decay.mean() - 3) < 0.1
  assert 140 < sum(own["kind"] == "p" for own in drawn) < 260
  assert drawn[:10] == random_search(space, trials=10, seed=3).parameters
  assert drawn[:10] != random_search(space, trials=10, seed=4).parameters


def test_scaled_learning_rates_stay_a_valid_config():
  """A peak alone cannot be lowered below its final_lr; the study moves both, in every stage."""
  experiment = "experiments/miniature.py:post=none"
  base = load(experiment)
  keys = scaled_learning_rates(base, {"lr": 0.25, "beta2": 0.9})
  scaled = load(experiment, [f"{key.removeprefix('config.')}={value}" for key, value in keys.items()])
  for name in ("s1", "s2", "s3"):
    old, new = base.stages[name].optimizer, scaled.stages[name].optimizer
    assert new.peak_lr == pytest.approx(old.peak_lr / 4) and new.final_lr == pytest.approx(old.final_lr / 4)
    assert new.beta2 == 0.9 and new.weight_decay == old.weight_decay


def test_studies_are_found_by_name(tmp_path):
  file = tmp_path / "own.py"
  file.write_text(FILE)
  own = find_study(f"{file}:tiny", "own")
  assert [unit["config.seed"] for unit in own.parameters] == [4, 5] and own.metric == "loss"
  assert find_study(str(file)) == own  # its only one
  assert find_study(str(file), "lr") == COMMON["lr"]
  with pytest.raises(ConfigError, match=r"study='onw': .* Did you mean 'own'\? Known: lr, optimizer, own"):
    find_study(str(file), "onw")
  with pytest.raises(ConfigError, match="study=''"):
    find_study("experiments/miniature.py")  # has none of its own
  with pytest.raises(ConfigError, match="no such file"):
    find_study("experiments/minature.py", "lr")
