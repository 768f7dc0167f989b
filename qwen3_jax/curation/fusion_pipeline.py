"""The data of thinking-mode fusion (Qwen3 report, section 4.3), from problems and curated samples to conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.curation.answer_filters import parse
from qwen3_jax.curation.checklists import Answered, mark
from qwen3_jax.curation.fusion import MODES, count, fuse
from qwen3_jax.curation.fusion_samples import Removed, Sample, direct_answers, fit, write_answers
from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.curation.jsonl import write_lines
from qwen3_jax.curation.query_filters import Judge
from qwen3_jax.curation.rejection_sampling import Asks, rejection_sample
from qwen3_jax.data.conversation import encode_conversation, thinking_mode
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.language_models.disk_cache import DiskCache
from qwen3_jax.language_models.language_model import LanguageModel
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.on_task import OnTask
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.registry import verify_all
from qwen3_jax.workdir import write_json

CONVERSATIONS, REPORT = "conversations.jsonl", "report.json"


def fusion_data(
  asker: Asks,
  problems: Sequence[Problem],
  non_thinking: Sequence[Sample],
  settings: FusionSettings,
  output: Path,
  seed: int,
  *,
  direct: Sequence[Problem] = (),
  params: Parameters | None = None,
  described: Mapping[str, Any] | None = None,
  judge: LanguageModel | None = None,
  writer: LanguageModel | None = None,
  verify: Judge = verify_all,
  on_progress: OnTask = lambda step, done, total: None,
) -> dict[str, Any]:
  """Makes the data in the folder `output` -> its report.

    conversations.jsonl  see `fusion.fuse`; the corpus source `chat:` reads it
    report.json          counts by mode, category, turns and place of flags, shares, what checks removed with examples
    thinking.jsonl       answers to the problems, as `rejection_sample` keeps them
    replies.sqlite       what `judge` and `writer` replied

  The same arguments and replies give the same files. A run that was killed goes on from the answers and replies it had.

  Args:
    asker: of the model that fusion continues from, with thinking.
    non_thinking: samples without thinking; those without an answer need `writer`.
    direct: problems whose references are further samples without thinking.
    params, described: as `rejection_sample` has them.
    judge: checks with checklists what no verifier has checked; None: nobody does.
    verify: verdicts of (problems, responses), of references.
    on_progress: called with a step's name, how much is done, and of how much.

  Raises ValueError for what `rejection_sample` and `fuse` refuse, and for a tokenizer whose chat template writes no
  empty think block; CurationError when a model fails too often.
  """
  if writer is None and (lacks := next((one for one in non_thinking if not one.turns[-1].response), None)):
    raise ValueError(f"sample {lacks.id!r} has no answer, and there is no model to write it")
  removed = Removed()
  sampled = rejection_sample(
    asker,
    problems,
    settings.samples,
    settings.most_per_problem,
    output / "thinking.jsonl",
    seed,
    params=params,
    described=described,
    at_a_time=settings.at_a_time,
    on_progress=lambda done, total: on_progress("thinking samples", done, total),
  )
  thinking = fit(sampled.samples, removed)
  if settings.thinking_share and not thinking:
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sampled.outcomes.most_common())
    raise ValueError(f"none of the answers to {len(problems)} problems can be used: {outcomes or 'there are none'}")
  common = (settings.tolerated_failures, on_progress)
  samples = list(non_thinking)
  if writer is not None:
    samples = write_answers(
      samples, _cached(writer, output), seed, removed,
      max_tokens=settings.max_tokens, tolerated=settings.tolerated_failures, on_progress=on_progress,
    )  # fmt: skip
  others = fit([*samples, *direct_answers(direct, removed, verify)], removed)
  unchecked = sum(not sample.verified for sample in others)
  if judge is not None:
    others = _good(others, _cached(judge, output), settings, seed, removed, *common)
  fused = fuse(thinking, others, settings, seed)
  kept, tokens = _encodable(fused.conversations, asker.tokenizer, settings.most_tokens)
  if not kept:
    raise ValueError(f"most_tokens={settings.most_tokens}: every conversation is longer")
  report = {
    "seed": seed,
    "settings": dataclasses.asdict(settings),
    "thinking": sampled.as_dict(),
    "removed": removed.as_dict(),
    "checklists": unchecked if judge is not None else 0,  # samples that were checked so
    "unchecked": 0 if judge is not None else unchecked,  # by nobody
    **fused.facts,
    "conversations": count(kept),
    "too_long": len(fused.conversations) - len(kept),
    "tokens": tokens,
  }
  write_lines(output / CONVERSATIONS, kept)
  write_json(output / REPORT, report)
  return report


def _cached(model: LanguageModel, output: Path) -> LanguageModel:
  return model if isinstance(model, DiskCache) else DiskCache(model, output / "replies.sqlite")


def _good(
  samples: Sequence[Sample],
  judge: LanguageModel,
  settings: FusionSettings,
  seed: int,
  removed: Removed,
  tolerated: float,
  on_progress: OnTask,
) -> list[Sample]:
  """Those that a verifier accepted, or whose every answer meets enough of its checklist."""
  asked: list[Answered] = []
  owners: list[int] = []
  for i, sample in enumerate(samples):
    before = f"{sample.system}\n\n" if sample.system else ""
    for turn in () if sample.verified else sample.turns:
      asked.append(Answered(before + turn.prompt, turn.response))
      owners.append(i)
      before += f"{turn.prompt}\n\n{turn.response}\n\n"
  marked = mark(asked, judge, seed, attempts=settings.attempts, tolerated=tolerated, on_progress=on_progress)
  faults: dict[int, str] = {}
  for i, marks in zip(owners, marked, strict=True):
    fault = marks.fault(settings.threshold)
    if fault and i not in faults:
      faults[i] = fault
      removed.add("malformed replies" if marks.problem else "checklist", samples[i], fault)
  return [sample for i, sample in enumerate(samples) if i not in faults]


def _encodable(
  conversations: Sequence[dict[str, Any]], tokenizer: Tokenizer, most_tokens: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
  """Those of at most so many tokens, each seen to be what its flags demand, and how many tokens they have."""
  kept = []
  tokens = {"all": 0, "trained_on": 0}
  for one in conversations:
    messages, mode = one["messages"], one["modes"][-1]
    assert MODES[thinking_mode(messages)] == mode, one
    ids, mask = encode_conversation(tokenizer, messages, loss="last")
    trained = [id for id, in_loss in zip(ids, mask) if in_loss]
    if parse(tokenizer.decode(trained[:-1]), thinks=mode == "think") is None:
      raise ValueError(
        f"{one['id']}: the tokenizer's chat template opens an answer with {tokenizer.decode(trained[:8])!r}; expected a"
        f" think block, {'with its thinking' if mode == 'think' else 'an empty one'}"
      )
    if most_tokens and len(ids) > most_tokens:
      continue
    kept.append(one)
    tokens["all"] += len(ids)
    tokens["trained_on"] += len(trained)
  return kept, tokens
