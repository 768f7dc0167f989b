"""How many planted defects each criterion finds, and how many sound ones it takes for them."""

from __future__ import annotations

from qwen3_jax.curation.criteria.similarity import ValidationIndex
from qwen3_jax.curation.criteria.wrong import wrong
from qwen3_jax.curation.response_filters import CRITERIA
from qwen3_jax.curation.trace import Trace
from qwen3_jax.evaluation.answers import extract_answer, same_answer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.verdict import Verdict
from tests.curation.clean_traces import EXPLAINED, clean_traces, entries
from tests.curation.defects import plant
from tests.curation.multilingual import multilingual_traces
from tests.curation.near_copies import near_copies

Counts = tuple[int, int, int, int]  # found, planted, sound ones flagged, sound ones


def judged_wrong(trace: Trace) -> str:
  """By the reference alone: what verifiers say is tested with them."""
  reference = trace.problem.reference
  if "\n" in reference:
    return wrong(trace, Verdict(float(reference in trace.response)))
  return wrong(
    trace, Verdict(float(same_answer(extract_answer(trace.response), reference) or reference in trace.response))
  )


def measure_criteria(count: int, seed: int, which: int) -> dict[str, Counts]:
  """For each criterion `count` defects and as many sound traces, and a quarter more in other languages.

  which: the half of the wordings; 0 is what detectors were adjusted on.
  """
  english = clean_traces(count, seed)
  sound = english + multilingual_traces(count // 4, seed)
  measured = {}
  for name, criterion in {"wrong": judged_wrong, **CRITERIA}.items():
    planted = [trace for _, trace in plant(name, english, count, seed, which)]
    checked = english if name == "wrong" else sound
    flagged = sum(bool(criterion(trace)) for trace in checked)
    measured[name] = (sum(bool(criterion(trace)) for trace in planted), count, flagged, len(checked))
  return measured


def measure_similarity(seed: int, copies: int = 300) -> Counts:
  def problem(family: str, entry: dict, id: str) -> Problem:
    return Problem(id, "reasoning", family, entry["question"], {"kind": "same"}, str(entry["answer"]))

  families = sorted(EXPLAINED)
  make = lambda count, offset: [
    problem(family, entry, f"{family}-{offset}-{i}")
    for family in families
    for i, entry in enumerate(entries(family, count, seed + offset))
  ]
  train, validation = make(20, 0), make(6, 1000)
  planted = [copy for _, copy in near_copies(validation, copies, seed)]
  index = ValidationIndex(validation, [*train, *planted])
  prompts = {one.prompt for one in validation}
  sound = [one for one in train if one.prompt not in prompts]
  return (
    sum(bool(index.similarity(one)) for one in planted),
    len(planted),
    sum(bool(index.similarity(one)) for one in sound),
    len(sound),
  )
