"""Domain labels (Qwen3 report, section 4.1): of queries that have none, by a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qwen3_jax.curation.ask import choose
from qwen3_jax.language_models.language_model import LanguageModel
from qwen3_jax.on_task import OnTask
from qwen3_jax.problems.problem import Problem

DOMAINS = ("mathematics", "logic", "code", "science", "language", "games", "other")
_QUESTION = """Here is a query to an assistant, between the marks. Do not answer it. Say which domain it belongs to.

<<<QUERY
{prompt}
QUERY>>>"""


def label(
  problems: Sequence[Problem],
  model: LanguageModel,
  domains: Sequence[str],
  seed: int,
  on_progress: OnTask,
  tolerated: float,
) -> list[Problem]:
  """The problems, each with a domain: its own, or the one of `domains` that the model names, or "other"."""
  open_ones = [i for i, problem in enumerate(problems) if not problem.domain]
  questions = [(problems[i].id, _QUESTION.format(prompt=problems[i].prompt)) for i in open_ones]
  said = choose(model, questions, domains, "labels", seed, on_progress=on_progress, tolerated=tolerated)
  labelled = list(problems)
  for i, choice in zip(open_ones, said):
    labelled[i] = dataclasses.replace(problems[i], domain=choice.word or "other")
  return labelled
