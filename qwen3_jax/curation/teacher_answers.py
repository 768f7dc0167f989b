"""A teacher's answers in both modes, for distillation off-policy (Qwen3 report, section 4.5).

Problems are asked with the soft switch in the user's turn (section 4.3): a share of the answers with /think, or for
some of these nothing, and the others with /no_think, where the teacher is to write an empty think block. Nothing else
makes it obey: answers that do not are left out.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.curation.answer_filters import Answered, Filters, answer_text
from qwen3_jax.curation.answer_store import AnswerStore
from qwen3_jax.curation.plans import by_id, digest
from qwen3_jax.curation.query_filters import Judge
from qwen3_jax.data.chat_template import check_messages
from qwen3_jax.data.conversation import encode_conversation, thinking_mode
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.records import field, read_records
from qwen3_jax.models.transformer import Parameters, Transformer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.registry import verify_all
from qwen3_jax.rl.asking import rollout_settings
from qwen3_jax.rl.modes import in_mode
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.generate import context_length, end_ids
from qwen3_jax.rollout.request import Request, Result, derived_seed
from qwen3_jax.rollout.sampling import NOT_THINKING, THINKING, SamplingParams

OnProgress = Callable[[int, int], None]
KEEP = ("right", "all")
ANSWERS = "answers.jsonl"
ROUNDS = 4  # of answers in all slots, between two looks at what is done


@dataclasses.dataclass(frozen=True)
class TeacherSettings:
  """How a teacher is asked."""

  samples: int = 1  # answers to each problem
  thinking_share: float = 0.5  # of the answers that think
  plain_share: float = 0.2  # of these: asked without a flag
  keep: str = "right"  # answers that the verifier accepts; "all": those that it does not, too
  seed: int = 0
  max_new_tokens: int = 2048  # of an answer
  thinking: SamplingParams = THINKING
  not_thinking: SamplingParams = NOT_THINKING
  at_a_time: int = 256  # answers between two looks at the disk, at least: what a kill costs

  def __post_init__(self):
    for name in ("samples", "max_new_tokens", "at_a_time"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")
    for name in ("thinking_share", "plain_share"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)}, expected from 0 to 1")
    if self.keep not in KEEP:
      raise ValueError(f"keep={self.keep!r}: no such choice.{nearest.or_all(self.keep, KEEP)}")


def teacher_engine(model: Transformer, settings: TeacherSettings, slots: int, max_length: int) -> Engine:
  """An engine for `teacher_answers`: `slots` answers at a time, of at most `max_length` tokens with their prompt."""
  adjusts = settings.thinking.adjusts or settings.not_thinking.adjusts
  of_engine = rollout_settings(slots, min(max_length, context_length(model.config)))
  return Engine(model.config, dataclasses.replace(of_engine, adjustments=adjusts))


def teacher_answers(
  engine: Engine,
  params: Parameters,
  tokenizer: Tokenizer,
  problems: Sequence[Problem],
  output: Path,
  settings: TeacherSettings = TeacherSettings(),
  *,
  teacher: str = "",
  judge: Judge = verify_all,
  on_progress: OnProgress = lambda done, total: None,
) -> dict[str, Any]:
  """Asks the problems, filters the answers and writes them into the folder `output` -> its report.

    answers.jsonl  {"id", "domain", "mode", "score", "messages"} a line; the corpus source `chat:` reads it
    report.json    what became of the answers by mode and domain, tokens that the teacher wrote

  The same arguments give the same files. A run that was killed goes on after its last block of answers; finished work
  is returned as it is. One process at a time.

  Args:
    engine: that nobody else uses; with adjustments, where the sampling has penalties.
    params: of the teacher.
    teacher: its name, for the report, and for the check that a run goes on with the same.
    judge: verdicts of (problems, responses).
    on_progress: called with how many answers are done, and of how many.

  Raises ValueError for problems that share an id or an `output` that holds something else, OSError if it cannot be
  written.
  """
  by_id(problems)
  per_block = max(1, settings.at_a_time // settings.samples)
  plan = {
    "teacher": teacher,
    "tokenizer": tokenizer.fingerprint,
    "problems": digest([dataclasses.asdict(problem) for problem in problems]),
    **json.loads(json.dumps(dataclasses.asdict(settings))),
    "engine": dataclasses.asdict(engine.settings),
  }
  total = len(problems) * settings.samples

  def blocks(first: int) -> Iterator[list[Answered]]:
    for start in range(first * per_block, len(problems), per_block):
      some = problems[start : start + per_block]
      progress = lambda done, _, start=start: on_progress(start * settings.samples + done, total)
      engine.rest()  # what is rounded must not depend on earlier blocks
      engine.update(params)
      yield _ask(engine, tokenizer, some, settings, progress)
    engine.rest()

  on_block = lambda store: on_progress(min(store.blocks * per_block, len(problems)) * settings.samples, total)
  return _stored(output, plan, blocks, settings.keep, judge, on_block)


def given_answers(
  path: Path,
  problems: Sequence[Problem],
  output: Path,
  settings: TeacherSettings = TeacherSettings(),
  *,
  judge: Judge = verify_all,
  on_progress: OnProgress = lambda done, total: None,
) -> dict[str, Any]:
  """As `teacher_answers`, of answers that others wrote: JSONL in the form of answers.jsonl.

  A line needs `id`, of its problem, and `messages`, the last of them the answer; `finish_reason` is "stop" unless it
  says otherwise. Whether an answer should think is read from the flags of the messages before it. Thinking is in
  `reasoning_content`, or between tags in `content`; an answer that should not think may have neither. Of `settings`,
  `keep` and `at_a_time` count.

  Raises ValueError naming the line for what is malformed or answers none of the problems; else as `teacher_answers`.
  """
  known = by_id(problems)
  answers = [answer for _, answer in read_records(path, lambda record: _given(record, known))]
  plan = {
    "answers": digest([dataclasses.asdict(answer) for answer in answers]),
    "keep": settings.keep,
    "at_a_time": settings.at_a_time,
  }

  def blocks(first: int) -> Iterator[list[Answered]]:
    for start in range(first * settings.at_a_time, len(answers), settings.at_a_time):
      yield answers[start : start + settings.at_a_time]

  on_block = lambda store: on_progress(min(store.blocks * settings.at_a_time, len(answers)), len(answers))
  return _stored(output, plan, blocks, settings.keep, judge, on_block)


def modes(problem: Problem, settings: TeacherSettings) -> list[str]:
  """In which of `rl.modes.MODES` each of the answers to a problem is asked for.

  Of one problem, each share is met as far as whole numbers allow; which way it is rounded is drawn for each problem.
  """
  rng = random.Random(derived_seed(settings.seed, "modes", problem.id))
  thinks = _shared(settings.samples, settings.thinking_share, rng)
  plain = iter(_shared(sum(thinks), settings.plain_share, rng))
  return [("plain" if next(plain) else "think") if one else "no_think" for one in thinks]


def _shared(count: int, share: float, rng: random.Random) -> list[bool]:
  """A share of `count`, evenly spread from a random start: each is True with probability `share`."""
  start = rng.random()
  steps = [math.floor(start + i * share) for i in range(count + 1)]
  return [after > before for before, after in itertools.pairwise(steps)]


def _ask(
  engine: Engine, tokenizer: Tokenizer, problems: Sequence[Problem], settings: TeacherSettings, on_progress: OnProgress
) -> list[Answered]:
  asked: list[Answered] = []
  requests: dict[int, Request] = {}
  for problem in problems:
    for number, mode in enumerate(modes(problem, settings)):
      if mode == "plain" and not thinking_mode([{"role": "user", "content": problem.prompt}]):
        mode = "think"  # the prompt itself says otherwise
      messages = [{"role": "user", "content": in_mode(problem, mode).prompt}]
      thinks = mode != "no_think"
      try:
        prompt = encode_conversation(tokenizer, messages, add_generation_prompt=True).ids
      except ValueError as error:
        raise ValueError(f"problem {problem.id!r}: {error}") from None
      if len(prompt) < engine.settings.max_length:
        requests[len(asked)] = Request(
          prompt,
          settings.max_new_tokens,
          settings.thinking if thinks else settings.not_thinking,
          stop_ids=end_ids(tokenizer),
          seed=derived_seed(settings.seed, problem.id, number),
        )
      asked.append(Answered(problem, messages, mode, thinks, text="", ending="error"))
  results = engine.run(requests.values(), lambda done, _: on_progress(done + len(asked) - len(requests), len(asked)))
  for i, result in zip(requests, results, strict=True):
    asked[i] = _answered(asked[i], tokenizer, result)
  return asked


def _answered(asked: Answered, tokenizer: Tokenizer, result: Result) -> Answered:
  assert result.finish_reason is not None
  tokens = result.tokens[:-1] if result.finish_reason == "stop" else result.tokens
  return dataclasses.replace(
    asked, text=answer_text(tokenizer, tokens), ending=result.finish_reason, tokens=len(result.tokens)
  )


def _given(record: dict[str, Any], problems: Mapping[str, Problem]) -> Answered:
  id, messages = field(record, "id", str), check_messages(field(record, "messages", list))
  if id not in problems:
    raise ValueError(f"id: {id!r} is none of the {len(problems)} problems.{nearest.sentence(id, problems)}")
  *before, answer = messages
  if not before or answer["role"] != "assistant":
    raise ValueError(f"messages: {len(messages)}, the last of role {answer['role']!r}; expected an assistant's answer")
  thinks = thinking_mode(before)
  mode = "no_think" if not thinks else "think" if thinking_mode(before, default=False) else "plain"
  content, thinking = answer.get("content") or "", answer.get("reasoning_content")
  if thinking or (thinking is not None and not thinks) or (thinking is None and not thinks and "think>" not in content):
    content = f"<think>\n{thinking or ''}\n</think>\n\n{content}"
  ending = field(record, "finish_reason", str) if "finish_reason" in record else "stop"
  return Answered(problems[id], before, mode, thinks, content, ending, record.get("tools"))


def _stored(
  output: Path,
  plan: Mapping[str, Any],
  blocks: Callable[[int], Iterator[list[Answered]]],
  keep: str,
  judge: Judge,
  on_block: Callable[[AnswerStore], None],
) -> dict[str, Any]:
  """Filters `blocks(first)`, those from number `first` on, into `output`."""
  store = AnswerStore(output, plan)
  if store.report.exists():
    return json.loads(store.report.read_text(encoding="utf-8"))
  filters = Filters(judge, keep_wrong=keep == "all")
  for conversation in store.kept():
    filters.remember(conversation)
  on_block(store)
  for answers in blocks(store.blocks):
    kept, counts = filters(answers)
    tokens: collections.Counter[str] = collections.Counter()
    for answer in answers:
      tokens[answer.mode] += answer.tokens
    store.add(kept, counts, tokens)
    on_block(store)
  return store.finish()
