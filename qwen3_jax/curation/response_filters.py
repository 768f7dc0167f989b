"""The criteria that look at one trace at a time, applied to many, in several processes if asked."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Sequence

from qwen3_jax.curation.criteria.guess import guess
from qwen3_jax.curation.criteria.inconsistency import inconsistency
from qwen3_jax.curation.criteria.language_mix import language_mix
from qwen3_jax.curation.criteria.repetition import repetition
from qwen3_jax.curation.criteria.style_shift import style_shift
from qwen3_jax.curation.trace import Trace

# In the report's order; each gives a reason, "" for a trace without the defect.
CRITERIA: dict[str, Callable[[Trace], str]] = {
  "repetition": lambda t: repetition(t.thinking, t.problem.prompt) or repetition(t.response, t.problem.prompt),
  "guess": lambda t: guess(t.thinking, t.response, t.problem.prompt),
  "inconsistency": lambda t: inconsistency(t.thinking, t.response, t.problem.prompt),
  "language_mix": lambda t: language_mix(t.thinking, t.response, t.problem.prompt),
  "style_shift": lambda t: style_shift(t.thinking, t.response, t.problem.prompt),
}


def first_defect(trace: Trace) -> tuple[str, str]:
  """(criterion, reason) of the first that a trace does not meet, else ("", "")."""
  for name, criterion in CRITERIA.items():
    reason = criterion(trace)
    if reason:
      return name, reason
  return "", ""


def first_defects(traces: Sequence[Trace], processes: int = 1) -> list[tuple[str, str]]:
  """`first_defect` of each, in their order."""
  if processes <= 1 or len(traces) < 100:
    return [first_defect(trace) for trace in traces]
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
    return list(pool.map(first_defect, traces, chunksize=max(1, len(traces) // (8 * processes))))
