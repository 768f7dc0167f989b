"""FusionSettings: what the data of thinking-mode fusion is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.curation.fusion_samples import CATEGORIES
from qwen3_jax.data.conversation import thinking_mode

TURNS = ("every", "last")


@dataclasses.dataclass(frozen=True)
class FusionSettings:
  """Proportions are our choice: the report publishes none. A turn is a question and its answer.

  Raises ValueError that names all that is wrong.
  """

  # Thinking samples
  samples: int = 4  # answers to each problem
  most_per_problem: int = 1  # that are kept
  at_a_time: int = 64  # problems between two looks at the disk
  # Samples without thinking
  threshold: float = 0.8  # share of a checklist's criteria that an answer must meet
  attempts: int = 3  # at a reply in the form that is asked for
  tolerated_failures: float = 0.01  # share of a step's replies that may fail for good
  max_tokens: int = 2048  # of an answer that a model writes
  # How many of which
  thinking_share: float = 0.5  # of the samples
  category_shares: Mapping[str, float] = dataclasses.field(default_factory=dict)  # without thinking; {}: all there are
  # Dialogs
  multi_turn_share: float = 0.3  # of the dialogs: of several samples
  most_turns: int = 4  # of such a dialog
  turns: str = "every"  # a conversation for "every" turn, up to it, or only the "last": loss is on the last turn alone
  most_tokens: int = 0  # of a conversation, 0: any number
  # Flags; where dialogs are too long for a share of first turns, it is as large as it can be
  unflagged_share: float = 0.3  # of the thinking samples: no flag in or before their turn, for thinking is the default
  later_flag_share: float = 0.7  # of the turns after a dialog's first: with a flag; the others follow the last one
  system_share: float = 0.2  # of the flags: in the system turn
  overridden_share: float = 0.2  # of the flags in system turns: the first user turn holds the opposite one
  before_share: float = 0.1  # of the flags in user turns: before the text
  line_break_share: float = 0.2  # of all flags that stand with a text: on a line of their own
  system_prompts: tuple[str, ...] = ("", "You are a helpful assistant.")  # beside a flag, where a sample has none

  def __post_init__(self):
    if problems := list(_problems(self)):
      raise ValueError("FusionSettings: " + "; ".join(problems))


def _problems(settings: FusionSettings) -> Iterator[str]:
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if field.type == "float" and not _is_share(value):
      yield f"{field.name}={value!r}, expected a number from 0 to 1"
    elif field.type == "int":
      least = {"most_tokens": 0, "most_turns": 2}.get(field.name, 1)
      if not isinstance(value, int) or isinstance(value, bool) or value < least:
        yield f"{field.name}={value!r}, expected a whole number, at least {least}"
  if settings.turns not in TURNS:
    yield f"turns={settings.turns!r}, expected one of {', '.join(TURNS)}"
  shares = settings.category_shares
  if not isinstance(shares, Mapping):
    yield f"category_shares={shares!r}, expected shares by category"
  elif shares:
    for name, share in shares.items():
      if name not in CATEGORIES:
        yield f"category_shares.{name}: no such category.{nearest.or_all(str(name), CATEGORIES)}"
      elif not _is_share(share):
        yield f"category_shares.{name}={share!r}, expected a number from 0 to 1"
    if all(map(_is_share, shares.values())) and not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
      yield f"category_shares: the sum is {sum(shares.values()):g}, expected 1"
  prompts = settings.system_prompts
  if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
    yield f"system_prompts={prompts!r}, expected one or more texts"
    return
  for prompt in prompts:
    asked = [{"role": "system", "content": prompt}]
    if thinking_mode(asked, default=True) == thinking_mode(asked, default=False):
      yield f"system_prompts: {prompt!r} holds a flag itself"


def _is_share(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
