"""Thinking-mode fusion (Qwen3 report, section 4.3): samples of both modes as conversations with flags.

/think or /no_think stands in a user turn or in the system turn, and the last one so far rules; without one a model
thinks. Dialogs of several turns join samples, each of the mode that rules at its turn.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Iterable, Sequence
from typing import Any

from qwen3_jax.curation.fusion_samples import Sample
from qwen3_jax.curation.fusion_settings import FusionSettings

MODES = {True: "think", False: "no_think"}  # by whether an answer thinks


@dataclasses.dataclass(frozen=True)
class Fused:
  """Conversations as `chat:` sources read them, and counts of what they are made of."""

  conversations: list[dict[str, Any]]
  facts: dict[str, Any]


def fuse(thinking: Sequence[Sample], non_thinking: Sequence[Sample], settings: FusionSettings, seed: int) -> Fused:
  """Every sample that the shares leave room for, once; the same for the same arguments.

  A conversation is {"id", "samples": their ids, "category", "domain", "modes": of each turn, "loss": "last",
  "messages"}; category, and domain, which corpora are labelled with, are those of its last turn, on which alone the
  loss is.

  Raises ValueError where there are no samples of a mode or category that has a share, and for samples in the wrong
  list.
  """
  for name, samples, thinks in (("thinking", thinking, True), ("non_thinking", non_thinking, False)):
    if wrong := next((sample for sample in samples if sample.thinks != thinks), None):
      raise ValueError(f"{name}: sample {wrong.id!r} {'has no' if thinks else 'has'} thinking")
  rng = random.Random(f"fusion {seed}")
  chosen = _chosen(thinking, non_thinking, settings, rng)
  dialogs = _joined(chosen, settings, rng)
  _leave_unflagged(dialogs, settings, rng)
  _move_to_system(dialogs, settings, rng)
  rng.shuffle(dialogs)
  conversations: list[dict[str, Any]] = []
  facts = _Facts()
  for number, dialog in enumerate(dialogs):
    conversations += _conversations(f"fusion-{number:07d}", dialog, settings, rng, facts)
  used = {mode: collections.Counter(sample.category for sample in samples) for mode, samples in chosen.items()}
  given = {"think": len(thinking), "no_think": len(non_thinking)}
  return Fused(
    conversations,
    {
      "samples": {mode: {"used": counts.total(), "given": given[mode]} for mode, counts in used.items()},
      "by_category": {mode: dict(sorted(counts.items())) for mode, counts in used.items()},
      **_described(dialogs, facts),
      "conversations": count(conversations),
    },
  )


@dataclasses.dataclass
class _Placed:
  """A sample in a dialog."""

  sample: Sample
  flag: bool  # in its first user turn


@dataclasses.dataclass
class _Dialog:
  placed: list[_Placed]
  system_flag: bool | None = None  # which mode a flag in the system turn names; None: there is none

  @property
  def thinks_unasked(self) -> int:
    """Thinking samples from the first on that a flag in the first turn alone rules."""
    following = next((i for i, one in enumerate(self.placed[1:], 1) if one.flag), len(self.placed))
    return following if self.placed[0].sample.thinks else 0

  @property
  def flags(self) -> int:
    return sum(one.flag for one in self.placed) + (self.system_flag is not None)


@dataclasses.dataclass
class _Facts:
  """Where flags were put."""

  places: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  separators: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


# Which samples


def _chosen(
  thinking: Sequence[Sample], non_thinking: Sequence[Sample], settings: FusionSettings, rng: random.Random
) -> dict[str, list[Sample]]:
  """As many as there are in the shares that are asked for, in random order."""
  share = settings.thinking_share
  for name, samples, of_these in (("thinking", thinking, share), ("non_thinking", non_thinking, 1 - share)):
    if of_these and not samples:
      raise ValueError(f"{name}: no samples, but thinking_share={share} asks for some")
  by_category: dict[str, list[Sample]] = {}
  for sample in rng.sample(non_thinking, len(non_thinking)):
    by_category.setdefault(sample.category if settings.category_shares else "", []).append(sample)
  shares = {name: part for name, part in (settings.category_shares or {"": 1.0}).items() if part}
  if share < 1:
    for name in shares:
      if not by_category.get(name):
        raise ValueError(f"category_shares.{name}={shares[name]}: no samples of this category")
  room = min(len(by_category.get(name, ())) / part for name, part in shares.items()) if share < 1 else 0.0
  if 0 < share < 1:
    room = min(room, len(thinking) * (1 - share) / share)  # of samples without thinking
  counts = {name: min(round(room * part), len(by_category.get(name, ()))) for name, part in shares.items()}
  others = [sample for name, count in counts.items() for sample in by_category.get(name, ())[:count]]
  wanted = len(thinking) if share == 1 else min(round(room * share / (1 - share)), len(thinking))
  return {"think": rng.sample(thinking, wanted), "no_think": rng.sample(others, len(others))}


class _Supply:
  """Samples of a mode that are left: those that can stand anywhere, and those that must open a dialog."""

  def __init__(self, samples: Sequence[Sample]):
    opens = lambda sample: bool(sample.system) or len(sample.turns) > 1
    self.anywhere = [sample for sample in samples if not opens(sample)]
    self.opening = [sample for sample in samples if opens(sample)]

  def __len__(self) -> int:
    return len(self.anywhere) + len(self.opening)

  def first(self, rng: random.Random) -> Sample:
    return (self.opening if rng.randrange(len(self)) < len(self.opening) else self.anywhere).pop()


# Dialogs and their flags


def _joined(chosen: dict[str, list[Sample]], settings: FusionSettings, rng: random.Random) -> list[_Dialog]:
  """All samples in dialogs; every first turn has a flag, and every later one whose mode is not that before it."""
  supply = {thinks: _Supply(chosen[mode]) for thinks, mode in MODES.items()}
  dialogs = []
  while any(supply.values()):
    turns = rng.randint(2, settings.most_turns) if rng.random() < settings.multi_turn_share else 1
    mode = rng.random() * (len(supply[True]) + len(supply[False])) < len(supply[True])
    placed = [_Placed(supply[mode].first(rng), flag=True)]
    for _ in range(turns - len(placed[0].sample.turns)):
      left = {thinks: len(of_mode.anywhere) for thinks, of_mode in supply.items()}
      if not any(left.values()):
        break
      flag = rng.random() < settings.later_flag_share or not left[mode]
      if flag:
        mode = rng.random() * sum(left.values()) < left[True]
      placed.append(_Placed(supply[mode].anywhere.pop(), flag))
    dialogs.append(_Dialog(placed))
  return dialogs


def _leave_unflagged(dialogs: Sequence[_Dialog], settings: FusionSettings, rng: random.Random) -> None:
  """Takes flags out of first turns until the share of the thinking samples has none in or before their turn."""
  wanted = settings.unflagged_share * sum(one.sample.thinks for dialog in dialogs for one in dialog.placed)
  for dialog in rng.sample(dialogs, len(dialogs)):
    count = dialog.thinks_unasked
    if count and count / 2 <= wanted:
      dialog.placed[0].flag = False
      wanted -= count


def _move_to_system(dialogs: Sequence[_Dialog], settings: FusionSettings, rng: random.Random) -> None:
  """Moves flags of first turns to the system turn, or adds the opposite there, until it has its share of all flags."""
  flagged = [dialog for dialog in dialogs if dialog.placed[0].flag]
  total = sum(dialog.flags for dialog in dialogs)
  share, overridden = settings.system_share, settings.overridden_share
  grows = 1 - share * overridden  # an overridden flag is one more
  wanted = min(round(share * total / grows) if grows else len(flagged), len(flagged))
  for number, dialog in enumerate(rng.sample(flagged, wanted)):
    thinks = dialog.placed[0].sample.thinks
    if number < round(overridden * wanted):
      dialog.system_flag = not thinks
    else:
      dialog.system_flag, dialog.placed[0].flag = thinks, False


# Text


def _conversations(
  id: str, dialog: _Dialog, settings: FusionSettings, rng: random.Random, facts: _Facts
) -> list[dict[str, Any]]:
  """One for each turn, or for the last."""
  system = dialog.placed[0].sample.system
  if dialog.system_flag is not None:
    facts.places["system"] += 1
    system = _flagged(system or rng.choice(settings.system_prompts), dialog.system_flag, "system", settings, rng, facts)
  messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
  samples: list[str] = []
  modes: list[str] = []
  made = []
  for one in dialog.placed:
    samples.append(one.sample.id)
    for number, turn in enumerate(one.sample.turns):
      prompt = turn.prompt
      if one.flag and number == 0:
        place = "before" if rng.random() < settings.before_share else "after"
        facts.places[place] += 1
        prompt = _flagged(prompt, one.sample.thinks, place, settings, rng, facts)
      messages.append({"role": "user", "content": prompt})
      modes.append(MODES[one.sample.thinks])
      # The template leaves the thinking out of earlier answers, so only the last one has it here.
      answer = {"role": "assistant", "content": turn.response, "reasoning_content": turn.thinking}
      made.append(
        {
          "id": f"{id}/{len(modes)}",
          "samples": list(samples),
          "category": one.sample.category,
          "domain": one.sample.category,
          "modes": list(modes),
          "loss": "last",
          "messages": [*messages, answer],
        }
      )
      messages.append({"role": "assistant", "content": turn.response})
  return made if settings.turns == "every" else made[-1:]


def _flagged(text: str, thinks: bool, place: str, settings: FusionSettings, rng: random.Random, facts: _Facts) -> str:
  """The text with a flag, a space or a line break between them."""
  flag = f"/{MODES[thinks]}"
  if not text.strip():
    return flag
  separator = "\n" if rng.random() < settings.line_break_share else " "
  facts.separators["line break" if separator == "\n" else "space"] += 1
  return f"{flag}{separator}{text.lstrip()}" if place == "before" else f"{text.rstrip()}{separator}{flag}"


def count(conversations: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Of conversations: by the mode and category of their last turn, by turns."""
  return {
    "number": len(conversations),
    "by_mode": _counts(one["modes"][-1] for one in conversations),
    "by_category": _counts(one["category"] for one in conversations),
    "by_turns": _counts(len(one["modes"]) for one in conversations),
  }


def _described(dialogs: Sequence[_Dialog], facts: _Facts) -> dict[str, Any]:
  """Counts, and the shares that settings ask for."""
  placed = [one for dialog in dialogs for one in dialog.placed]
  thinking = sum(one.sample.thinks for one in placed)
  later = [one for dialog in dialogs for one in dialog.placed[1:]]
  unasked = sum(d.thinks_unasked for d in dialogs if not d.placed[0].flag and d.system_flag is None)
  system, users = facts.places["system"], facts.places["before"] + facts.places["after"]
  overridden = sum(dialog.system_flag is not None and dialog.placed[0].flag for dialog in dialogs)
  return {
    "dialogs": {
      "number": len(dialogs),
      "by_turns": _counts(sum(len(one.sample.turns) for one in dialog.placed) for dialog in dialogs),
    },
    "flags": {"number": system + users, **dict(sorted(facts.places.items())), "overridden": overridden},
    "shares": {
      "thinking_share": _share(thinking, len(placed)),
      "multi_turn_share": _share(sum(len(dialog.placed) > 1 for dialog in dialogs), len(dialogs)),
      "unflagged_share": _share(unasked, thinking),
      "later_flag_share": _share(sum(one.flag for one in later), len(later)),
      "system_share": _share(system, system + users),
      "overridden_share": _share(overridden, system),
      "before_share": _share(facts.places["before"], users),
      "line_break_share": _share(facts.separators["line break"], facts.separators.total()),
    },
  }


def _counts(values: Iterable[Any]) -> dict[Any, int]:
  return dict(sorted(collections.Counter(values).items()))


def _share(part: int, whole: int) -> float | None:
  """None where there is nothing to have a share of."""
  return round(part / whole, 4) if whole else None
