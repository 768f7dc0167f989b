"""What the model writes after the same prompts, from stage to stage."""

from __future__ import annotations

import collections
import dataclasses

from qwen3_jax.reporting import lineage
from qwen3_jax.reporting.run_record import RunRecord, visible

_MAX_PROMPTS = 12  # shown of a group of stages
_MAX_CHARACTERS = 1500  # shown of one text


@dataclasses.dataclass(frozen=True)
class Column:
  stage: str
  step: int


@dataclasses.dataclass(frozen=True)
class WrittenSamples:
  """Prompts that the same stages share."""

  columns: list[Column]
  rows: list[tuple[str, list[str]]]  # prompt, what was written after it at each column


def written_samples(run: RunRecord) -> list[WrittenSamples]:
  """By groups of stages with the same prompts: the end of each, and before it what it starts from.

  The end of a stage is where the next begins: the first evaluation is shown of a stage that starts from none of its
  group, once for those with the same start.
  """
  pairs = {stage.name: {prompt: (first, last) for prompt, first, last in stage.sample_pairs()} for stage in run.stages}
  by_stages: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
  for prompt in dict.fromkeys(prompt for own in pairs.values() for prompt in own):
    by_stages[tuple(name for name, own in pairs.items() if prompt in own)].append(prompt)
  start_of = lineage.starts(run)
  found = []
  for names, prompts in by_stages.items():
    columns, texts = [], collections.defaultdict(list)
    shown_starts: set[str | None] = set()
    for name in names:
      shown_prompts = prompts[:_MAX_PROMPTS]
      first, last = ([pairs[name][prompt][end] for prompt in shown_prompts] for end in (0, 1))
      wanted = [last]
      if start_of[name] not in names and start_of[name] not in shown_starts and first[0] is not last[0]:
        wanted.insert(0, first)
        shown_starts.add(start_of[name])
      for samples in wanted:
        columns.append(Column(visible(name), samples[0]["step"]))
        for prompt, sample in zip(shown_prompts, samples):
          texts[prompt].append(shorten(sample["text"]))
    found.append(WrittenSamples(columns, [(shorten(prompt), own) for prompt, own in texts.items()]))
  return found


def shorten(text: str) -> str:
  """Visible text of at most _MAX_CHARACTERS."""
  return visible(text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " …")
