"""What a batch of rollouts is made of, with an asker whose answers are written down."""

import threading

import numpy as np
import pytest

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.asking import Answer, by_thinking_length, summary
from qwen3_jax.rl.collector import Collector
from qwen3_jax.rl.modes import in_mode
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.rollout.multi_turn import Trajectory
from qwen3_jax.rollout.thinking_budget import ThinkingTokens


def problem(i: int) -> Problem:
  return Problem(f"p{i}", "d", f"s{i % 2}", f"question {i}", {"kind": "exact"}, "1")


def answer(right: bool, tokens: int = 4, ended="done", thinking: int = 2) -> Answer:
  trajectory = Trajectory(
    prompt=[1, 2],
    tokens=list(range(tokens)),
    log_probabilities=[-0.5] * tokens,
    sampling_log_probabilities=[-0.5] * tokens,
    sampled=[True] * tokens,
    experts=[None] * tokens,
    answers=[(0, tokens)],
    rewards=[float(right)],
    infos=[{"score": float(right)}],
    ended=ended,
  )
  return Answer(trajectory, float(right), thinking)


class WrittenAsker:
  """Problems of even number have mixed answers, the others only wrong ones."""

  max_new_tokens = 8

  def __init__(self, of=None):
    self.lock = threading.Lock()
    self.engine = self
    self.asked: list[list[str]] = []
    self.given: list[object] = []
    self.rested = 0
    self._of = of or (lambda number: [answer(number % 2 == 0 and i == 0) for i in range(4)])

  def ask(self, params, problems, samples, seed):
    self.asked.append([p.id for p in problems])
    self.given.append(params)
    return [self._of(int(p.id[1:])) for p in problems]

  def rest(self):
    self.rested += 1


def collector(asker, problems=20, **changes) -> Collector:
  settings = {
    "groups": 4,
    "samples": 4,
    "length": 16,
    "waves": 4,
    "normalize_std": True,
    "overlong": "keep",
    "overlong_tokens": 0,
    "experts": None,
    "modes": {"plain": 1.0},
    "seed": 0,
  }
  order = ProblemOrder([problem(i) for i in range(problems)], 0, relearn=False)
  return Collector(asker, order, **settings | changes)


def test_groups_that_teach_nothing_are_replaced():
  asker = WrittenAsker()
  collected = collector(asker).collect(0, "parameters")
  useful = [id for wave in asker.asked for id in wave if int(id[1:]) % 2 == 0]
  assert len(asker.asked) > 1 and len(useful) == 4 and len(asker.asked[-1]) < 4
  assert asker.given == ["parameters", *[None] * (len(asker.asked) - 1)] and asker.rested == 1
  advantages = collected.batch.rollout.advantages
  assert (np.abs(advantages).max(axis=1) > 0.5).all()  # every row teaches something
  asked = sum(map(len, asker.asked))
  assert collected.metrics["zero_variance"] == pytest.approx(1 - 4 / asked)
  assert collected.metrics["pass@1"] == pytest.approx(4 / (4 * asked))  # of all that were asked
  assert collected.entropy == pytest.approx(0.5)


def test_the_last_wave_fills_up_with_what_there_is():
  asker = WrittenAsker(lambda number: [answer(False)] * 4)
  collected = collector(asker, waves=2).collect(0, "parameters")
  assert len(asker.asked) == 2 and collected.batch.tokens.shape == (16, 16)
  assert not collected.batch.rollout.advantages.any() and collected.metrics["zero_variance"] == 1
  assert collected.batch.loss_weights.any()


@pytest.mark.parametrize("overlong", ["keep", "mask", "penalize"])
def test_answers_that_were_cut_short(overlong):
  answers = [answer(True), answer(True, tokens=8, ended="length"), answer(False), answer(False)]
  asker = WrittenAsker(lambda number: answers)
  collected = collector(asker, overlong=overlong, overlong_tokens=4, groups=1, normalize_std=False).collect(0, "p")
  weights, advantages = collected.batch.loss_weights.sum(axis=1), collected.batch.rollout.advantages.max(axis=1)
  rewards = np.array([1.0, 0.0 if overlong == "penalize" else 1.0, 0.0, 0.0])
  assert weights.tolist() == [4, 0 if overlong == "mask" else 8, 4, 4]
  np.testing.assert_allclose(advantages[0], 1 - rewards.mean())
  if overlong == "penalize":
    np.testing.assert_allclose(collected.batch.rollout.advantages.min(axis=1)[1], -rewards.mean())
  assert collected.metrics["truncated"] == 0.25 and collected.metrics["reward"] == 0.5


def test_answers_whose_environment_failed_do_not_count():
  asker = WrittenAsker(lambda number: [answer(True), answer(False, ended="environment_error"), answer(False)] * 2)
  collected = collector(asker, groups=2, samples=6).collect(0, "p")
  assert collected.batch.loss_weights.sum(axis=1).tolist() == [4, 0, 4, 4, 0, 4] * 2
  assert collected.metrics["broken"] == pytest.approx(1 / 3)


def test_an_answer_has_the_score_and_the_thinking_of_its_trajectory():
  ids = ThinkingTokens(start=100, end=101, sentence=(1,), turn=102)
  of = lambda prompt, tokens, **fields: Answer.of(ids, Trajectory(prompt=prompt, tokens=tokens, **fields))
  assert of([102, 5], [100, 5, 6, 101, 7]).thinking_tokens == 2
  assert of([102, 5], [5, 6, 7, 101, 7]).thinking_tokens == 3  # opened out of sight
  assert of([102, 5], [100, 5, 6]).thinking_tokens == 2
  assert of([102, 5], [5, 6]).thinking_tokens == 0
  assert of([102, 100], [5, 6]).thinking_tokens == 2
  assert of([102, 100, 101], [5, 6]).thinking_tokens == 0
  assert of([], []).score == 0 and of([1], [2], infos=[{}, {"score": 1}]).right


def test_summary():
  groups = [[answer(True, thinking=9), answer(False, thinking=3)], [answer(False, thinking=0), answer(False, 6)]]
  found = summary([problem(0), problem(1)], groups)
  assert found["pass@1"] == 0.25 and found["pass@2"] == 0.5
  assert found["pass@1/s0"] == 0.5 and found["pass@1/s1"] == 0
  assert found["response_tokens"] == 4.5 and found["thinking_tokens"] == 3.5
  assert "pass@1/plain" not in found  # of one mode alone
  assert by_thinking_length([a for group in groups for a in group]) == {
    "share/thinking 0": 0.25,
    "pass@1/thinking 0": 0,
    "share/thinking 2..3": 0.5,
    "pass@1/thinking 2..3": 0,
    "share/thinking 8..15": 0.25,
    "pass@1/thinking 8..15": 1,
  }


def test_summary_by_mode():
  right, wrong = answer(True, thinking=4), answer(False, thinking=0)
  modes = ("think", "no_think", "think")
  found = summary(
    [in_mode(problem(i), mode) for i, mode in enumerate(modes)], [[right] * 2, [right, wrong], [wrong] * 2]
  )
  assert found["pass@1"] == 0.5 and found["pass@2"] == pytest.approx(2 / 3)
  assert (found["pass@1/think"], found["pass@2/think"], found["thinking_tokens/think"]) == (0.5, 0.5, 2)
  assert (found["pass@1/no_think"], found["pass@2/no_think"], found["thinking_tokens/no_think"]) == (0.5, 1, 2)
