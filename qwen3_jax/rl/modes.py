"""Modes in which problems are asked: with a soft switch in the user's turn, or plainly (report, section 4.3)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rollout.request import derived_seed

MODES = ("plain", "think", "no_think")


def in_mode(problem: Problem, mode: str) -> Problem:
  """The problem as a user asks it who wants that mode."""
  return problem if mode == "plain" else dataclasses.replace(problem, prompt=f"{problem.prompt} /{mode}")


def mode_of(problem: Problem) -> str:
  """The mode that `in_mode` gave."""
  return next((mode for mode in MODES[1:] if problem.prompt.endswith(f" /{mode}")), "plain")


def in_random_modes(problems: Sequence[Problem], shares: Mapping[str, float], *seed: object) -> list[Problem]:
  """Each problem in a mode of its own, drawn with those shares; the same for the same seed."""
  modes = list(shares)
  draw = lambda i: random.Random(derived_seed(*seed, i)).choices(modes, [shares[mode] for mode in modes])[0]
  return [in_mode(problem, draw(i)) for i, problem in enumerate(problems)]


def in_every_mode(problems: Sequence[Problem], shares: Mapping[str, float]) -> list[Problem]:
  """The problems in each of the modes that have a share."""
  return [in_mode(problem, mode) for mode in shares if shares[mode] > 0 for problem in problems]
