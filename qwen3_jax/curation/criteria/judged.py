"""Criteria 3 to 5 (Qwen3 report, section 4.1) by a language model, for what rules do not see."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_jax.curation.ask import choose
from qwen3_jax.curation.trace import Trace
from qwen3_jax.language_models.language_model import LanguageModel
from qwen3_jax.on_task import OnTask

_CRITERIA = {
  "SOUND": "",
  "GUESSED": "guess",
  "DISAGREES": "inconsistency",
  "MIXED": "language_mix",
}
_LONGEST = 12_000  # characters of the thinking that are shown: its beginning and its end
_QUESTION = """Below are a question, an assistant's thinking and its response. Do not answer the question, and do not \
judge whether the answer is right. Judge the writing only.

<<<QUESTION
{prompt}
QUESTION>>>
<<<THINKING
{thinking}
THINKING>>>
<<<RESPONSE
{response}
RESPONSE>>>

GUESSED: the thinking arrives at its answer without reasoning that leads to it.
DISAGREES: the response's answer, or the way it explains it, is not that of the thinking.
MIXED: the language or the style of writing changes in a way the question does not ask for.
SOUND: none of these."""


def judged(
  traces: Sequence[Trace],
  model: LanguageModel,
  seed: int,
  on_progress: OnTask,
  tolerated: float,
) -> list[tuple[str, str]]:
  """(criterion, reason) of each trace, ("", "") of those that are sound, or that the model gives no verdict of."""
  questions = [
    (
      f"{trace.problem.id} {trace.sample}",
      _QUESTION.format(prompt=trace.problem.prompt, thinking=_shown(trace.thinking), response=trace.response),
    )
    for trace in traces
  ]
  said = choose(model, questions, list(_CRITERIA), "judged traces", seed, on_progress=on_progress, tolerated=tolerated)
  return [
    (_CRITERIA[choice.word], f"{choice.word.lower()}, says the model") if choice.word not in ("", "SOUND") else ("", "")
    for choice in said
  ]


def _shown(thinking: str) -> str:
  if len(thinking) <= _LONGEST:
    return thinking
  return f"{thinking[: _LONGEST // 2]}\n[...]\n{thinking[-_LONGEST // 2 :]}"
