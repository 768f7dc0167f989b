"""Batches of a student's answers, with an asker whose answers are written down."""

import threading

import numpy as np
import pytest

from qwen3_jax.distillation.student_collector import StudentCollector
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.asking import Answer
from qwen3_jax.rl.modes import MODES, in_every_mode, in_random_modes, mode_of
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.rollout.multi_turn import Trajectory

SHARES = {"plain": 0.2, "think": 0.5, "no_think": 0.3}


def problem(i: int) -> Problem:
  return Problem(f"p{i}", "maths" if i % 2 else "logic", f"s{i % 3}", f"question {i}", {"kind": "exact"}, "1")


def answer(ended="done") -> Answer:
  sampled = [True, True, False, True]  # one token was inserted
  trajectory = Trajectory(
    prompt=[1, 2],
    tokens=[3, 4, 5, 6],
    log_probabilities=[-0.5] * 4,
    sampling_log_probabilities=[-0.5] * 4,
    sampled=sampled,
    experts=[None] * 4,
    answers=[(0, 4)],
    rewards=[0.0],
    infos=[{"score": 0.0}],
    ended=ended,
  )
  return Answer(trajectory, 0.0, 2)


class WrittenAsker:
  max_new_tokens = 8

  def __init__(self):
    self.lock = threading.Lock()
    self.engine = self
    self.asked: list[Problem] = []

  def ask(self, params, problems, samples, seed):
    self.asked += problems
    return [[answer("environment_error" if p.id == "p0" else "done")] * samples for p in problems]

  def rest(self):
    pass


def collector(asker, **changes) -> StudentCollector:
  settings = {
    "problems": 12,
    "samples": 2,
    "length": 8,
    "modes": SHARES,
    "teachers": ["large", "brief", "maths"],
    "routes": [("no_think", "brief"), ("maths", "maths")],
    "seed": 0,
  }
  order = ProblemOrder([problem(i) for i in range(12)], 0, relearn=False)
  return StudentCollector(asker=asker, order=order, **settings | changes)


def test_every_token_the_model_chose_learns_from_the_teacher_of_its_problem():
  asker = WrittenAsker()
  collected = collector(asker).collect(0, None)
  batch = collected.batch
  assert batch.shape == (24, 8) and batch.rollout is None
  assert len({mode_of(p) for p in asker.asked}) == 3
  for i, asked in enumerate(asker.asked):
    wanted = 1 if mode_of(asked) == "no_think" else 2 if asked.domain == "maths" else 0
    assert (batch.teachers.choice[2 * i : 2 * i + 2] == wanted).all()
    # Positions 1.. predict the answer; the third of its tokens was inserted; a broken environment teaches nothing.
    weights = [0, 1, 1, 0, 1, 0, 0, 0] if asked.id != "p0" else [0] * 8
    np.testing.assert_array_equal(batch.loss_weights[2 * i : 2 * i + 2], [weights] * 2)
  shares = [collected.metrics[f"share/{name}"] for name in ("large", "brief", "maths")]
  assert sum(shares) == pytest.approx(1) and min(shares) > 0


def test_modes_are_drawn_with_their_shares_and_never_otherwise_for_a_seed():
  problems = [problem(i) for i in range(3000)]
  drawn = in_random_modes(problems, SHARES, 7, 1)
  assert drawn == in_random_modes(problems, SHARES, 7, 1) != in_random_modes(problems, SHARES, 7, 2)
  counts = {mode: sum(mode_of(p) == mode for p in drawn) / 3000 for mode in MODES}
  assert counts == pytest.approx(SHARES, abs=0.03)
  assert {p.prompt for p in drawn if p.id == "p5"} <= {"question 5", "question 5 /think", "question 5 /no_think"}
  assert len(in_every_mode(problems[:10], {"plain": 0.0, "think": 1.0, "no_think": 0.0})) == 10
  assert [mode_of(p) for p in in_every_mode(problems[:1], SHARES)] == ["plain", "think", "no_think"]
