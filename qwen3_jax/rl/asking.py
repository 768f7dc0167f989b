"""Asking a policy problems: rollouts with their rewards, and what they say of the policy."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.pass_at_k import mean_pass_at_k
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.modes import mode_of
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.environment import Environment
from qwen3_jax.rollout.multi_turn import Trajectory, rollout
from qwen3_jax.rollout.request import derived_seed
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens

TRUNCATED = ("length", "context")
_PREFILL_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Answer:
  """One of the answers to a problem."""

  trajectory: Trajectory
  score: float  # the verifier's, 0..1
  thinking_tokens: int

  @classmethod
  def of(cls, ids: ThinkingTokens, trajectory: Trajectory) -> Answer:
    """The answer that a trajectory is; its thinking is that of the first turn."""
    score = float(trajectory.infos[-1].get("score", 0.0)) if trajectory.infos else 0.0
    thinking = ids.thinking(ids.phase(trajectory.prompt), trajectory.tokens)
    return cls(trajectory, score, 0 if thinking is None else thinking.stop - thinking.start)

  @property
  def right(self) -> bool:
    return self.score >= 1.0

  @property
  def truncated(self) -> bool:
    return self.trajectory.ended in TRUNCATED

  @property
  def broken(self) -> bool:
    """Whether not the model but its environment, or its numbers, failed."""
    return self.trajectory.ended not in ("done", "max_turns", *TRUNCATED)


def rollout_settings(slots: int, max_length: int, **others: Any) -> EngineSettings:
  """Of an engine whose requests start many at once, and sample from the whole distribution."""
  return EngineSettings(
    slots=slots,
    max_length=max_length,
    prefill_rows=min(_PREFILL_ROWS, slots),
    prefill_length=min(EngineSettings.prefill_length, max_length),
    adjustments=False,
    **others,
  )


@dataclasses.dataclass
class Asker:
  """Answers to problems from an engine that one caller uses at a time."""

  engine: Engine
  tokenizer: Tokenizer
  environment: Callable[[Problem], Environment]
  sampling: SamplingParams
  max_new_tokens: int
  thinking_budget: int | None
  enable_thinking: bool

  def __post_init__(self):
    self.lock = threading.Lock()  # of the engine, from `ask`'s parameters to its last rollout

  def ask(self, params: Parameters | None, problems: Sequence[Problem], samples: int, seed: int) -> list[list[Answer]]:
    """`samples` answers to each, the same for the same seed and parameters; None: those of the last call."""
    if params is not None:
      self.engine.rest()
      self.engine.update(params)
    environments = [self.environment(problem) for problem in problems for _ in range(samples)]
    seeds = [derived_seed(seed, problem.id, number) for problem in problems for number in range(samples)]
    trajectories = rollout(
      self.engine,
      self.tokenizer,
      environments,
      sampling=self.sampling,
      max_new_tokens=self.max_new_tokens,
      thinking_budget=self.thinking_budget,
      enable_thinking=self.enable_thinking,
      seeds=seeds,
    )
    ids = ThinkingTokens.of(self.tokenizer)
    answers = [Answer.of(ids, trajectory) for trajectory in trajectories]
    return [answers[i : i + samples] for i in range(0, len(answers), samples)]


def summary(problems: Sequence[Problem], groups: Sequence[Sequence[Answer]]) -> dict[str, float]:
  """What answers say of a policy: rates and mean lengths; lengths in tokens, entropy in nats a token."""
  answers = [answer for group in groups for answer in group]
  samples = len(groups[0])
  mean = lambda values: float(np.mean(list(values)))
  right = [sum(answer.right for answer in group) for group in groups]
  metrics = {
    "pass@1": mean(answer.right for answer in answers),
    "score": mean(answer.score for answer in answers),
    "reward": mean(answer.trajectory.reward for answer in answers),
    "response_tokens": mean(len(answer.trajectory.tokens) for answer in answers),
    "thinking_tokens": mean(answer.thinking_tokens for answer in answers),
    "truncated": mean(answer.truncated for answer in answers),
    "broken": mean(answer.broken for answer in answers),
    "rollout_entropy": entropy(answers),
  }
  if samples > 1:
    metrics[f"pass@{samples}"] = mean_pass_at_k(samples, right, samples)
  by_domain: dict[str, list[float]] = {}
  for problem, group in zip(problems, groups):
    by_domain.setdefault(problem.sub_domain, []).append(mean(answer.right for answer in group))
  if len(by_domain) > 1:
    metrics |= {f"pass@1/{name}": mean(rates) for name, rates in sorted(by_domain.items())}
  modes = [mode_of(problem) for problem in problems]
  for mode in sorted({*modes}) if len({*modes}) > 1 else []:
    some = [answer for of, group in zip(modes, groups) if of == mode for answer in group]
    metrics[f"pass@1/{mode}"] = mean(answer.right for answer in some)
    if samples > 1:
      of_mode = [count for of, count in zip(modes, right) if of == mode]
      metrics[f"pass@{samples}/{mode}"] = mean_pass_at_k(samples, of_mode, samples)
    metrics[f"thinking_tokens/{mode}"] = mean(answer.thinking_tokens for answer in some)
  return metrics | by_thinking_length(answers)


def by_thinking_length(answers: Sequence[Answer]) -> dict[str, float]:
  """Where accuracy comes from: `share/thinking 8..15`, of answers that think so many tokens, and their `pass@1/...`."""
  buckets: dict[int, list[float]] = {}
  for answer in answers:
    buckets.setdefault(answer.thinking_tokens.bit_length(), []).append(float(answer.right))
  metrics = {}
  for bits, right in sorted(buckets.items()):
    name = f"thinking {2 ** (bits - 1)}..{2**bits - 1}" if bits else "thinking 0"
    metrics[f"share/{name}"] = len(right) / len(answers)
    metrics[f"pass@1/{name}"] = float(np.mean(right))
  return metrics


def entropy(answers: Sequence[Answer]) -> float:
  """Mean of -log p over the tokens that the model chose: an unbiased estimate, in nats a token."""
  of = lambda trajectory: [-p for p, sampled in zip(trajectory.log_probabilities, trajectory.sampled) if sampled]
  found = [value for answer in answers for value in of(answer.trajectory)]
  return float(np.mean(found)) if found else 0.0
