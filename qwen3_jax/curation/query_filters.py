"""Which queries are unfit (Qwen3 report, section 4.1): not easily verifiable, or answered rightly without thinking."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qwen3_jax.curation.ask import ask_all, choose
from qwen3_jax.language_models.language_model import ChatRequest, LanguageModel
from qwen3_jax.on_task import OnTask
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.verdict import Verdict
from qwen3_jax.rollout.request import derived_seed

Judge = Callable[[Sequence[Problem], Sequence[str]], list[Verdict]]

_PART = re.compile(r"^\s*\(?(?:[a-h]|i{1,3}|iv|[1-8])[).]\s+(.+)$", re.MULTILINE)
_ASKS = re.compile(
  r"^(?:what|how|why|when|where|who|which|find|compute|calculate|determine|show|prove|explain|give|state|list|describe|is"
  r"|are|does|do|can|solve|evaluate)\b|\?\s*$",
  re.IGNORECASE,
)
_WRITES = re.compile(
  r"^\s*(?:please\s+)?(?:(?:can|could) you\s+)?(?:write|compose|draft|create|generate|tell)\s+(?:me\s+)?"
  r"(?:an?|some|the)\s+(?:\w+[\s-]+){0,3}?(?:essay|story|poem|haiku|sonnet|song|lyrics|letter|e-?mail|blog|article|speech|review|script|dialogue"
  r"|joke|summary|slogan|advert\w*|biography|novel|tale|limerick|post|report|cover letter)\b",
  re.IGNORECASE,
)
_DISCUSSES = re.compile(
  r"^\s*(?:please\s+)?(?:discuss|describe|explain|elaborate|reflect|brainstorm|summari[sz]e|compare and contrast)\b",
  re.IGNORECASE,
)

VERIFIABLE, SEVERAL, OPEN = "VERIFIABLE", "SEVERAL_QUESTIONS", "OPEN_ENDED"
_QUESTION = """Here is a query to an assistant, between the marks. Do not answer it. Judge whether an answer to it \
could be checked against one known result by a program.

<<<QUERY
{prompt}
QUERY>>>

{several}: it asks several questions that each need an answer of their own. (Several conditions of one question, or an \
answer that is a list or a grid, are one question.)
{open}: it asks for text whose quality is a matter of taste or opinion: an essay, a story, advice, an explanation.
{verifiable}: anything else: it has one definite answer."""


def by_rules(problem: Problem) -> str:
  """Why a query is surely not easily verifiable, "" where it may be."""
  if not problem.prompt.strip():
    return "an empty query"
  if not problem.verifier.get("kind"):
    return "no verifier"
  parts = [part for part in _PART.findall(problem.prompt) if _ASKS.search(part)]
  if len(parts) > 1:
    return f"several sub-questions: {parts[0][:60]!r}, {parts[1][:60]!r}"
  if _WRITES.search(problem.prompt) or (_DISCUSSES.search(problem.prompt) and not problem.reference):
    return "open-ended: asks for text"
  return ""


def not_verifiable(
  problems: Sequence[Problem], model: LanguageModel, seed: int, on_progress: OnTask, tolerated: float
) -> list[str]:
  """For each query why it is not easily verifiable, "" if it is: by rules, then as the model says."""
  reasons = [by_rules(problem) for problem in problems]
  left = [i for i, reason in enumerate(reasons) if not reason]
  questions = [
    (problems[i].id, _QUESTION.format(prompt=problems[i].prompt, several=SEVERAL, open=OPEN, verifiable=VERIFIABLE))
    for i in left
  ]
  words = (VERIFIABLE, SEVERAL, OPEN)
  said = choose(model, questions, words, "query filter", seed, on_progress=on_progress, tolerated=tolerated)
  names = {VERIFIABLE: "", SEVERAL: "several sub-questions, says the model", OPEN: "open-ended, says the model"}
  for i, choice in zip(left, said):
    reasons[i] = names[choice.word] if choice.word else choice.problem
  return reasons


def solved_without_thinking(
  problems: Sequence[Problem],
  model: LanguageModel,
  judge: Judge,
  seed: int,
  on_progress: OnTask,
  tolerated: float,
  *,
  max_tokens: int = 1024,
) -> list[str]:
  """For each query how the model answered it rightly without thinking, "" if it did not."""
  requests = [
    ChatRequest(
      [{"role": "user", "content": problem.prompt}],
      max_tokens=max_tokens,
      temperature=0.7,
      top_p=0.8,
      presence_penalty=1.5,  # the report's sampling without thinking, section 4.6
      enable_thinking=False,
      seed=derived_seed(seed, "without thinking", problem.id) % 2**31,
    )
    for problem in problems
  ]
  answers = [replies[0] for replies in ask_all(model, requests, "without thinking", on_progress, tolerated)]
  verdicts = judge(problems, [answer.response for answer in answers])
  return [
    f"answered rightly without thinking: {answer.response.strip()[-120:]!r}"
    if verdict.right and answer.finish_reason == "stop"
    else ""
    for answer, verdict in zip(answers, verdicts)
  ]
