"""Collector: one batch of rollouts, from the next problems to rows with advantages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from qwen3_jax.batch import Batch
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.advantages import group_advantages, overlong_penalty, zero_variance
from qwen3_jax.rl.asking import Answer, Asker, summary
from qwen3_jax.rl.experience import experience
from qwen3_jax.rl.modes import in_random_modes
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.rollout.request import derived_seed


@dataclasses.dataclass(frozen=True)
class Collected:
  batch: Batch  # numpy, one row for each answer
  metrics: dict[str, float]

  @property
  def entropy(self) -> float:
    """Of all answers, nats a token."""
    return self.metrics["rollout_entropy"]


@dataclasses.dataclass
class Collector:
  asker: Asker
  order: ProblemOrder
  groups: int  # of a batch
  samples: int
  length: int  # T of the rows
  waves: int
  normalize_std: bool
  overlong: str
  overlong_tokens: int
  experts: tuple[int, int] | None  # (L, k)
  modes: Mapping[str, float]  # shares of the problems, see `modes.MODES`
  seed: int

  @property
  def rows(self) -> int:
    """Of a batch."""
    return self.groups * self.samples

  def collect(self, number: int, params: Parameters) -> Collected:
    """Batch `number` of rollouts of the policy `params`.

    Groups whose rewards are all equal teach nothing: in further waves others take their places. All groups enter the
    metrics; where the last wave leaves too few, the first of those without variance fill the batch.
    """
    problems: list[Problem] = []
    groups: list[list[Answer]] = []
    rewards: list[np.ndarray] = []
    useful: list[int] = []
    with self.asker.lock:
      for wave in range(self.waves):
        asked = in_random_modes(self.order.take(self.groups - len(useful)), self.modes, self.seed, number, wave)
        seed = derived_seed(self.seed, number, wave)
        for problem, answers in zip(asked, self.asker.ask(params if wave == 0 else None, asked, self.samples, seed)):
          self.order.report(problem, sum(answer.right for answer in answers) / len(answers))
          problems.append(problem)
          groups.append(answers)
          rewards.append(self._rewards(answers))
        useful = np.flatnonzero(~zero_variance(np.stack(rewards))).tolist()
        if len(useful) == self.groups:
          break
      self.asker.engine.rest()  # training needs the memory
    others = sorted(set(range(len(groups))) - set(useful))
    chosen = sorted([*useful, *others[: self.groups - len(useful)]])
    advantages = group_advantages(np.stack([rewards[i] for i in chosen]), self.normalize_std)
    answers = [answer for i in chosen for answer in groups[i]]
    counted = [not answer.broken and not (self.overlong == "mask" and answer.truncated) for answer in answers]
    trajectories = [answer.trajectory for answer in answers]
    batch = experience(trajectories, advantages.ravel().tolist(), counted, self.length, self.experts)
    metrics = summary(problems, groups) | {
      "shaped_reward": float(np.mean(rewards)),
      "zero_variance": 1.0 - len(useful) / len(groups),
      "waves": wave + 1.0,
    }
    return Collected(batch, metrics)

  def _rewards(self, answers: list[Answer]) -> np.ndarray:
    rewards = np.asarray([answer.trajectory.reward for answer in answers], np.float64)
    if self.overlong == "penalize":
      lengths = np.asarray([len(answer.trajectory.tokens) for answer in answers])
      rewards -= overlong_penalty(lengths, self.asker.max_new_tokens, self.overlong_tokens)
    return rewards
