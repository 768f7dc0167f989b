"""A server whose replies are made from the problems' own answers, with known rates of each defect."""

from __future__ import annotations

import ast
import collections
import dataclasses
import random
import threading
from collections.abc import Sequence
from typing import Any

from qwen3_jax.curation.trace import Trace
from qwen3_jax.problems.lossless_json import unpack
from qwen3_jax.problems.problem import Problem
from tests.curation.clean_traces import EXPLAINED, clean_trace
from tests.curation.defects import DEFECTS
from tests.language_models.chat_server import Answer, chat

FAMILIES = tuple(sorted(set(EXPLAINED) - {"gsm_symbolic"}))  # whose steps the problem does not have
WITHOUT_THINKING = 0.12  # share of queries answered rightly without thinking
HOPELESS = 0.04  # share of queries that are always answered wrongly
RATES = {
  "wrong": 0.2,
  "repetition": 0.05,
  "guess": 0.05,
  "inconsistency": 0.05,
  "language_mix": 0.04,
  "style_shift": 0.04,
}


class ScriptedModel:
  """Answers requests' bodies; the same body gets the same answer, whenever it comes.

  `served` counts what the responses to queries had: "sound", or the defect.
  """

  def __init__(self, problems: Sequence[Problem], seconds: float = 0.0):
    self._problems = {problem.prompt: problem for problem in problems}
    self._seconds = seconds
    self._lock = threading.Lock()
    self.served: collections.Counter[str] = collections.Counter()

  def __call__(self, body: dict[str, Any]) -> Answer:
    text = body["messages"][0]["content"]
    rng = random.Random(f"{text} {body['seed']}")
    if "<<<QUERY" in text:
      reply = self._judgement(text, rng)
    else:
      reply = self._response(self._problems[text], body["chat_template_kwargs"]["enable_thinking"], rng)
    return Answer(reply, seconds=self._seconds)

  def _judgement(self, text: str, rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.02:
      return chat("I would rather not say.")  # is asked again
    if "SEVERAL_QUESTIONS" in text:
      word = rng.choices(["VERIFIABLE", "SEVERAL_QUESTIONS", "OPEN_ENDED"], [96, 2, 2])[0]
    else:
      word = "mathematics"
    return chat(f"Let me see. It asks for one thing.\nVERDICT: {word}")

  def _response(self, problem: Problem, thinks: bool, rng: random.Random) -> dict[str, Any]:
    of_query = random.Random(problem.prompt)
    hopeless = of_query.random() < HOPELESS
    trace = sound(problem, rng.randrange(1 << 30))
    if not thinks:
      right = of_query.random() < WITHOUT_THINKING and not hopeless
      trace = trace if right else planted("wrong", trace, rng)
      return chat(trace.response, tokens=(len(problem.prompt) // 4, len(trace.response) // 4))
    defect = "wrong" if hopeless else rng.choices([*RATES, "sound"], [*RATES.values(), 1 - sum(RATES.values())])[0]
    if defect != "sound":
      trace = planted(defect, trace, rng)
    with self._lock:
      self.served[defect] += 1
    size = len(trace.thinking) + len(trace.response)
    return chat(trace.response, tokens=(len(problem.prompt) // 4, size // 4), reasoning_content=trace.thinking)


def sound(problem: Problem, seed: int) -> Trace:
  """A sound trace; what was asked about is in the verifier's spec, else it is read off question and answer."""
  family = problem.sub_domain
  entry: dict[str, Any] = {"question": problem.prompt, "answer": problem.reference}
  if "entry" in problem.verifier:
    entry |= unpack(problem.verifier["entry"])
  elif family == "spell_backward":
    entry["metadata"] = {"word": problem.reference[::-1]}
  else:
    wanted = ast.literal_eval(problem.reference)
    order = sorted(wanted, key=lambda number: problem.prompt.find(str(number)))
    direction = "descending" if "descending" in problem.prompt else "ascending"
    entry["metadata"] = {"original_numbers": order, "sorted_numbers": wanted, "direction": direction}
  return dataclasses.replace(clean_trace(family, entry, 0, seed), problem=problem)


def planted(defect: str, trace: Trace, rng: random.Random) -> Trace:
  kinds = list(DEFECTS[defect].values())
  if defect == "inconsistency":
    kinds = kinds[1:2]  # those whose response is right, so that no other criterion finds them first
  return rng.choice(kinds)(trace, rng, rng.randrange(2))
