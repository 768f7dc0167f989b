"""StudentCollector: one batch of what a student writes, to learn from teachers' predictions of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from qwen3_jax.batch import Batch, Teachers
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.asking import Asker, summary
from qwen3_jax.rl.collector import Collected
from qwen3_jax.rl.experience import experience
from qwen3_jax.rl.modes import in_random_modes, mode_of
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.rollout.request import derived_seed


@dataclasses.dataclass
class StudentCollector:
  """Verdicts enter the metrics, not the loss: wrong answers teach as much."""

  asker: Asker
  order: ProblemOrder
  problems: int  # of a batch
  samples: int  # answers to each
  length: int  # T of the rows
  modes: Mapping[str, float]  # shares of the problems, see `rl.modes.MODES`
  teachers: Sequence[str]  # names; the first teaches what no route names
  routes: Sequence[tuple[str, str]]  # (a mode, domain or sub-domain, its teacher): the first that fits rules
  seed: int

  @property
  def rows(self) -> int:
    """Of a batch."""
    return self.problems * self.samples

  def collect(self, number: int, params: Parameters) -> Collected:
    """Batch `number` of answers of the policy `params`."""
    with self.asker.lock:
      asked = in_random_modes(self.order.take(self.problems), self.modes, self.seed, number)
      groups = self.asker.ask(params, asked, self.samples, derived_seed(self.seed, number))
      self.asker.engine.rest()  # training needs the memory
    answers = [answer for group in groups for answer in group]
    counted = [not answer.broken for answer in answers]
    trajectories = [answer.trajectory for answer in answers]
    batch = experience(trajectories, [0.0] * len(answers), counted, self.length)
    chosen = np.repeat([self.teacher_of(problem) for problem in asked], self.samples)
    choice = np.broadcast_to(chosen[:, None], batch.shape).astype(np.int32)
    metrics = summary(asked, groups)
    if len(self.teachers) > 1:
      metrics |= {f"share/{name}": float(np.mean(chosen == i)) for i, name in enumerate(self.teachers)}
    return Collected(dataclasses.replace(batch, rollout=None, teachers=Teachers(choice)), metrics)

  def teacher_of(self, problem: Problem) -> int:
    """The number of the teacher whose predictions answers to a problem learn from."""
    known = (mode_of(problem), problem.domain, problem.sub_domain)
    return next((self.teachers.index(teacher) for what, teacher in self.routes if what in known), 0)


class NoTerms:
  """`Terms` of a batch that needs nothing of the policy."""

  def begin(self, params: Parameters, batch: Batch, entropy: float, progress: float) -> tuple[Batch, dict[str, float]]:
    return batch, {}

  def get_state(self) -> dict:
    return {}

  def set_state(self, state: dict) -> None:
    pass
