"""ThinkFollow (Qwen3 report, section 4.7 and Table 22): dialogs with random /think and /no_think; is each obeyed?"""

from __future__ import annotations

import collections
import dataclasses
import random
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from qwen3_jax.data.conversation import thinking_mode
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.confidence import Estimate, IntervalEvaluation, clustered
from qwen3_jax.evaluation.form import disobedience
from qwen3_jax.evaluation.questions import ASKING, Answered, Ask, Asking, Question
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rollout.request import derived_seed

_IN_SYSTEM = 0.25  # of dialogs: the first flag stands in a system turn
# Where the flag that rules a turn stands.
HERE, EARLIER, SYSTEM, NOWHERE = "flag in this turn", "flag in an earlier turn", "flag in the system turn", "no flag"


class Turn(NamedTuple):
  content: str  # of the user
  thinks: bool  # whether the answer should
  place: str  # of the flag that rules it


class Dialog(NamedTuple):
  system: str  # "" for none
  turns: list[Turn]


@dataclasses.dataclass(frozen=True)
class ThinkFollow:
  """Dialogs of 2 up to `turns` turns of the user, each a problem's prompt with /think, /no_think or nothing.

  What is measured is what a user of a chat has: the answers so far stand in the context without their thinking, as
  the chat template leaves it out, and the flags are all that says whether to think (`enable_thinking` stays on). A
  rollout of several turns would keep the thinking in the context: more to imitate than a user gives.

  Metrics: the share of turns that obey (`form.disobedience`) with an interval over dialogs, by mode, by number of the
  turn and by where the flag stands that rules it; how many turns disobey in which way, are truncated, or were not asked
  because the dialog had filled the context. Problems whose prompt holds a flag itself are left out.

  Raises ValueError for options that cannot be.
  """

  problems: Sequence[Problem]
  dialogs: int = 64
  turns: int = 4  # at most
  seed: int = 0
  thinking_budget: int | None = None  # tokens, of turns that should think
  asking: Asking = ASKING

  def __post_init__(self):
    if self.dialogs < 1 or self.turns < 2:
      raise ValueError(f"dialogs={self.dialogs}, turns={self.turns}: expected at least 1 and 2")
    if not self._prompts():
      raise ValueError("problems: there are none without a flag of their own")

  def dialogs_to_hold(self) -> list[Dialog]:
    """The same for the same seed and problems."""
    prompts = self._prompts()
    return [_dialog(random.Random(derived_seed(self.seed, i)), prompts, self.turns) for i in range(self.dialogs)]

  def run(self, model: Transformer, tokenizer: Tokenizer) -> IntervalEvaluation:
    """Raises ValueError where no dialog's first turn fits the context."""
    return self.run_with(self.asking.of_model(model, tokenizer))

  def run_with(self, ask: Ask) -> IntervalEvaluation:
    """The same of whatever answers, e.g. `Asking.of_engine`."""
    dialogs = self.dialogs_to_hold()
    answers = self._hold(dialogs, ask)
    if not any(answers):
      raise ValueError("no dialog fits the context")
    judged = [
      [(number, turn, answer, disobedience(answer.text, turn.thinks)) for number, (turn, answer) in enumerate(pairs, 1)]
      for pairs in (list(zip(dialog.turns, given)) for dialog, given in zip(dialogs, answers))
    ]
    counted: dict[str, dict[int, list[bool]]] = {}  # group of turns -> dialog -> whether its turns obey
    for i, dialog_turns in enumerate(judged):
      for number, turn, _, fault in dialog_turns:
        for name in ("all turns", "thinking" if turn.thinks else "not thinking", turn.place, f"turn {number}"):
          counted.setdefault(name, {}).setdefault(i, []).append(not fault)
    order = ("all turns", "thinking", "not thinking", *(f"turn {i}" for i in range(1, self.turns + 1)))
    metrics: dict[str, float | Estimate] = {
      "dialogs": self.dialogs,
      "truncated": statistics.fmean(answer.truncated for given in answers for answer in given),
      "not_asked": sum(len(dialog.turns) - len(given) for dialog, given in zip(dialogs, answers)),
    }
    for name in (*order, HERE, EARLIER, SYSTEM, NOWHERE):
      if name in counted:
        metrics[f"{name}/obeys"] = clustered(list(counted[name].values()))
        metrics[f"{name}/turns"] = sum(map(len, counted[name].values()))
    faults = collections.Counter(
      f"{'thinking' if turn.thinks else 'not thinking'}: {fault}/answers"
      for dialog_turns in judged for _, turn, _, fault in dialog_turns if fault
    )  # fmt: skip
    metrics |= dict(faults.most_common())
    rows = [
      {"system": dialog.system, "turns": [_row(*judgement[1:]) for judgement in dialog_turns]}
      for dialog, dialog_turns in zip(dialogs, judged)
    ]
    return IntervalEvaluation.of(metrics, rows)

  def _hold(self, dialogs: Sequence[Dialog], ask: Ask) -> list[list[Answered]]:
    """Answers to the turns of each dialog, up to where it has filled the context."""
    histories: list[list[dict[str, Any]]] = [
      [{"role": "system", "content": dialog.system}] if dialog.system else [] for dialog in dialogs
    ]
    answers: list[list[Answered]] = [[] for _ in dialogs]
    for number in range(self.turns):
      going = [i for i, given in enumerate(answers) if len(given) == number < len(dialogs[i].turns)]
      questions = []
      for i in going:
        turn = dialogs[i].turns[number]
        histories[i].append({"role": "user", "content": turn.content})
        seeds = [derived_seed(self.seed, i, number)]
        budget = self.thinking_budget if turn.thinks else None
        questions.append(Question(list(histories[i]), seeds, turn.thinks, thinking_budget=budget))
      for i, answered in zip(going, ask(questions) if questions else []):
        if answered:
          answers[i] += answered
          histories[i].append(_message(answered[0]))
    return answers

  def _prompts(self) -> list[str]:
    said = lambda prompt, default: thinking_mode([{"role": "user", "content": prompt}], default)
    return [p.prompt for p in self.problems if said(p.prompt, True) and not said(p.prompt, False)]


def _dialog(rng: random.Random, prompts: Sequence[str], most: int) -> Dialog:
  count = rng.randint(2, most)
  asked = rng.sample(prompts, count) if count <= len(prompts) else rng.choices(prompts, k=count)
  flags = [rng.choice(("/think", "/no_think", "")) for _ in asked]
  system, place = "", NOWHERE
  if rng.random() < _IN_SYSTEM:
    system, flags[0], place = rng.choice(("/think", "/no_think")), "", SYSTEM
  turns = []
  messages = [{"role": "system", "content": system}]
  for prompt, flag in zip(asked, flags):
    content = f"{prompt} {flag}" if flag else prompt
    messages.append({"role": "user", "content": content})
    turns.append(Turn(content, thinking_mode(messages), HERE if flag else place))
    place = EARLIER if flag else place
  return Dialog(system, turns)


def _message(answer: Answered) -> dict[str, Any]:
  """The assistant's turn as the next question's context has it."""
  found = answer.completion
  thinking = {} if found.thinking_end == "none" else {"reasoning_content": found.thinking}
  return {"role": "assistant", "content": found.response, **thinking}


def _row(turn: Turn, answer: Answered, fault: str) -> dict[str, Any]:
  return {"content": turn.content, "thinks": turn.thinks, "flag": turn.place, "fault": fault, "answer": answer.text}
