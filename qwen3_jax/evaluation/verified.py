"""Which answers to problems are right, as RL has it."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence

from qwen3_jax.evaluation.questions import Answered, Ask, Question
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.environment import ProblemEnvironment
from qwen3_jax.rewards.registry import check_problem
from qwen3_jax.rollout.environment import Action


def check_problems(problems: Sequence[Problem]) -> None:
  """Raises ValueError where there are none, and for one that cannot be verified."""
  if not problems:
    raise ValueError("problems: there are none")
  for problem in problems:
    check_problem(problem)


def right_answers(problems: Sequence[Problem], groups: Sequence[Sequence[Answered]]) -> list[list[bool]]:
  """Of each problem's answers: whether it ended by itself, closed its thinking, and the verifier gives it 1."""
  pairs = [(ProblemEnvironment(problem), answer) for problem, group in zip(problems, groups) for answer in group]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:  # some verifiers wait for processes
    verdicts = threads.map(lambda pair: _is_right(*pair), pairs)
    return [[next(verdicts) for _ in group] for group in groups]


def ask_all(ask: Ask, problems: Sequence[Problem], questions: Sequence[Question]) -> list[list[Answered]]:
  """Answers to a question of each problem. Raises ValueError for a problem that leaves no room for an answer."""
  groups = ask(questions)
  for problem, group in zip(problems, groups):
    if not group:
      raise ValueError(f"problem {problem.id!r}: its prompt leaves no room for an answer in the context")
  return groups


def _is_right(environment: ProblemEnvironment, answer: Answered) -> bool:
  found = answer.completion
  result = environment.step(Action(found.response, found.thinking, found.finish_reason))
  return result.info["score"] >= 1
