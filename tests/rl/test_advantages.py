"""Advantages, the penalty of long answers, the entropy controller, the order of problems."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_jax.data.records import DataError
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.advantages import group_advantages, overlong_penalty, zero_variance
from qwen3_jax.rl.entropy_control import EntropyControl
from qwen3_jax.rl.problem_order import ProblemOrder

REWARDS = st.lists(st.floats(-5, 5, allow_nan=False), min_size=4, max_size=4)


@given(st.lists(REWARDS, min_size=1, max_size=5), st.booleans(), st.floats(-3, 3))
def test_advantages(rewards, normalize, shift):
  rewards = np.array(rewards)
  found = group_advantages(rewards, normalize)
  for group, advantages in zip(rewards, found):
    mean = sum(group) / len(group)
    std = (sum((r - mean) ** 2 for r in group) / len(group)) ** 0.5
    expected = [(r - mean) / (std + 1e-6 if normalize else 1.0) for r in group]
    np.testing.assert_allclose(advantages, expected if len(set(group)) > 1 else 0.0, atol=1e-9)
  exact = np.round(rewards * 8) / 8 + np.round(shift * 8) / 8  # no rounding: a shift changes nothing at all
  np.testing.assert_allclose(
    group_advantages(exact, normalize), group_advantages(np.round(rewards * 8) / 8, normalize), atol=1e-9
  )


def test_groups_of_equal_rewards():
  rewards = np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 1.0], [0.3, 0.3, 0.3]])
  assert zero_variance(rewards).tolist() == [True, False, True]
  advantages = group_advantages(rewards, True)
  assert not advantages[[0, 2]].any() and advantages[1, 2] > 1.4


def test_overlong_penalty_counts_tokens():
  assert overlong_penalty(np.array([0, 80, 85, 90, 100, 120]), limit=100, buffer=20).tolist() == [0, 0, 0.25, 0.5, 1, 1]


def test_entropy_is_held_on_a_policy_that_loses_it():
  """A policy whose entropy falls by 5% a step, and rises with the coefficient of its bonus."""

  def final(gain: float, rise: float = 0.0) -> float:
    control, entropy = EntropyControl(0.0, rise, gain, 0.0, 1.0, 0.0), 0.5
    for step in range(200):
      control.update(entropy, step / 200)
      entropy = 0.95 * entropy + 0.3 * control.coefficient
    return entropy

  assert final(0.0) < 1e-3  # without control
  assert final(0.05) == pytest.approx(0.5, abs=0.02)
  assert final(0.05, rise=0.2) == pytest.approx(0.7, abs=0.04)


def test_entropy_coefficient_keeps_its_bounds():
  control = EntropyControl(0.3, 0.0, 1.0, 0.01, 0.2, 0.05)
  control.update(0.0, 0.0)
  assert control.coefficient == 0.2
  control.update(9.0, 0.0)
  assert control.coefficient == 0.01
  other = EntropyControl(0.0, 0.0, 1.0, 0.01, 0.2, 0.05)
  other.set_state(control.get_state())
  assert (other.target, other.coefficient) == (0.3, 0.01)


def problems(count: int) -> list[Problem]:
  return [Problem(f"p{i}", "d", "s", f"question {i}", {"kind": "exact"}, "1") for i in range(count)]


def test_order_is_shuffled_epochs():
  order = ProblemOrder(problems(10), seed=3, relearn=False)
  ids = [problem.id for problem in order.take(25)]
  assert set(ids[:10]) == set(ids[10:20]) == {f"p{i}" for i in range(10)} and ids[:10] != ids[10:20]
  again = ProblemOrder(problems(10), seed=3, relearn=False)
  assert [p.id for p in again.take(7) + again.take(18)] == ids
  assert [p.id for p in ProblemOrder(problems(10), seed=4, relearn=False).take(10)] != ids[:10]


def test_what_is_settled_is_left_out_for_an_epoch():
  order = ProblemOrder(problems(10), seed=0, relearn=True)
  for problem in order.take(10):
    order.report(problem, {"p0": 1.0, "p1": 0.0}.get(problem.id, 0.5))
  second = order.take(8)
  assert {p.id for p in second} == {f"p{i}" for i in range(2, 10)}
  for problem in second:
    order.report(problem, 1.0 if problem.id != "p2" else 0.5)
  # Seven of ten are settled: what is left, with what comes back, is enough.
  assert {p.id for p in order.take(3)} == {"p0", "p1", "p2"}
  for problem in problems(3):
    order.report(problem, 0.0)
  assert {p.id for p in order.take(7)} == {f"p{i}" for i in range(3, 10)}


def test_an_epoch_is_never_nearly_empty():
  order = ProblemOrder(problems(8), seed=0, relearn=True)
  for problem in order.take(8):
    order.report(problem, 1.0)
  assert len({p.id for p in order.take(8)}) == 8


@pytest.mark.parametrize("taken", [3, 10, 13])
def test_order_resumes(taken):
  whole = ProblemOrder(problems(10), seed=1, relearn=True)
  for problem in whole.take(taken):
    whole.report(problem, 1.0 if problem.id in ("p3", "p4") else 0.5)
  state = whole.get_state()
  resumed = ProblemOrder(problems(10), seed=1, relearn=True)
  resumed.set_state(state)
  assert [p.id for p in resumed.take(20)] == [p.id for p in whole.take(20)]
  with pytest.raises(DataError, match="no problem 'p"):
    ProblemOrder(problems(2), seed=1, relearn=True).set_state({**state, "settled": ["p7"]})
  with pytest.raises(ValueError, match="twice"):
    ProblemOrder([*problems(2), *problems(1)], seed=1, relearn=True)
