"""Studies: which values of which parameters a sweep tries.

A parameter is an argument of the experiment (`scope`), a key of its config (`config.stages.s1.z_loss`), or anything
that the study's `expand` turns into those.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

Parameters = dict[str, Any]  # name -> string, number, bool or tuple

CONFIG = "config."  # before the name of a parameter that is a key of the config
SEED = "config.seed"


@dataclasses.dataclass(frozen=True)
class Study:
  """The work units of a sweep.

  `metric` is what they are compared by: the last value of the last stage that ran. `maximize` says that more of it is
  better. `expand(config, parameters)` gives arguments and keys for the parameters of a work
  unit; `config` is that of the experiment without them.
  """

  parameters: Sequence[Parameters]  # of each work unit
  metric: str = "validation/loss"
  maximize: bool = False
  expand: Callable[[ConfigDict, Parameters], Parameters] | None = None

  def with_seeds(self, number: int) -> Study:
    """Every work unit `number` times, with `config.seed` 0, 1, ..."""
    seeds = [{SEED: seed} for seed in range(number)] if number > 1 else [{}]
    return dataclasses.replace(self, parameters=[own | seed for own in self.parameters for seed in seeds])


def grid(values: Mapping[str, Sequence[Any]], **of_study: Any) -> Study:
  """Every combination of the values; the last parameter changes fastest. `of_study`: the other fields of Study."""
  return Study([dict(zip(values, chosen)) for chosen in itertools.product(*values.values())], **of_study)


@dataclasses.dataclass(frozen=True)
class Uniform:
  """A number in [low, high)."""

  low: float
  high: float

  def draw(self, random: np.random.Generator) -> float:
    return _rounded(random.uniform(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class LogUniform:
  """A positive number whose logarithm is uniform in [log(low), log(high))."""

  low: float
  high: float

  def draw(self, random: np.random.Generator) -> float:
    return _rounded(math.exp(random.uniform(math.log(self.low), math.log(self.high))))


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of the values, each as likely."""

  values: Sequence[Any]

  def draw(self, random: np.random.Generator) -> Any:
    return self.values[int(random.integers(len(self.values)))]


def random_search(
  space: Mapping[str, Uniform | LogUniform | Choice], trials: int, seed: int = 0, **of_study: Any
) -> Study:
  """`trials` independent draws. More trials with the same seed begin with the same draws."""
  random = np.random.default_rng(seed)
  return Study([{name: of.draw(random) for name, of in space.items()} for _ in range(trials)], **of_study)


def _rounded(value: float) -> float:
  """To four significant digits: what a command line and a folder's name can show."""
  return float(f"{value:.4g}")
