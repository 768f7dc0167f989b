"""Rewards of one-turn environments, alone and in a rollout's terms."""

import pytest

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.environment import ProblemEnvironment
from qwen3_jax.rollout.environment import Action

SUM = Problem("sum", "mathematics", "sums", "1 + 1?", {"kind": "numeric"}, "2")


def test_rewards():
  environment = ProblemEnvironment(SUM, right=2.0, format_reward=0.25)
  assert list(environment.reset().messages) == [{"role": "user", "content": "1 + 1?"}]
  for action, reward, reason in [
    (Action("2", "1 and 1"), 2.25, ""),
    (Action("2"), 2.25, ""),
    (Action("3", "hm"), 0.25, "'3' instead of 2"),
    (Action("2", "hm", "length"), 0.0, "did not end by itself (length)"),
    (Action("2", "hm", "context"), 0.0, "did not end by itself (context)"),
    (Action("", "thinking without end: 2"), 0.0, "nothing follows the thinking"),
    (Action(""), 0.0, "an empty response"),
    (Action("<think>so</think>2"), 0.0, "<think> in the response"),
    (Action("so</think>2"), 0.0, "</think> in the response"),
  ]:
    result = environment.step(action)
    assert result.done and result.reward == reward, action
    assert reason in result.info["reason"] and result.info["problem"] == "sum"
    assert result.info["score"] == (1.0 if reward > 1 else 0.0)
    assert result.info["well_formed"] == (reward > 0)


def test_without_the_requirement_tags_are_text():
  environment = ProblemEnvironment(SUM, require_thinking_closed=False)
  assert environment.step(Action("so it is </think> 2")).reward == 1.0
  assert environment.step(Action("2", finish_reason="length")).reward == 0.0


def test_slow_kinds_are_judged_too():
  algebra = Problem("p", "m", "a", "?", {"kind": "mathematics"}, "(x+1)^2")
  assert ProblemEnvironment(algebra).step(Action("\\boxed{x^2+2x+1}")).reward == 1.0
  bomb = ProblemEnvironment(algebra, seconds=0.5).step(Action("\\boxed{9^{9^{9^{9^9}}}}"))
  assert bomb.reward == 0.0 and "0.5 s" in bomb.info["reason"]


def test_problems_that_cannot_be_verified_are_refused():
  with pytest.raises(ValueError, match=r"problem 'p': .*Did you mean 'sets'"):
    ProblemEnvironment(Problem("p", "", "", "", {"kind": "set"}))
