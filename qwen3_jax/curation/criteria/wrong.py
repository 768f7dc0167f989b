"""Criterion 1 (Qwen3 report, section 4.1): the final answer is wrong."""

from __future__ import annotations

from qwen3_jax.curation.trace import Trace
from qwen3_jax.rewards.verdict import Verdict


def wrong(trace: Trace, verdict: Verdict) -> str:
  """What is wrong with the answer, "" if nothing is; one that was cut short, or says nothing, is wrong."""
  if not trace.finished:
    return "cut short before its end"
  if not trace.response.strip():
    return "no response after the thinking"
  return "" if verdict.right else verdict.reason or f"score {verdict.score:g}"
