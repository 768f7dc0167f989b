"""What the engine is asked, and what it answers, in token ids."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens

FinishReason = Literal["stop", "stop_string", "length", "context", "not_finite", "cancelled", "error"]
MAX_STOP_IDS = 8


@dataclasses.dataclass(frozen=True)
class Request:
  prompt: Sequence[int]
  max_new_tokens: int  # at most; with a thinking budget, after the thinking
  sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
  stop_ids: tuple[int, ...] = ()  # end the answer, whose last token they are
  seed: int | None = None  # the request's own randomness; None: another each time
  thinking_budget: int | None = None  # tokens between <think> and what closes it; None: any number
  # Given the new tokens of a request as they come, how many of them to keep if that is where it ends, else None.
  ends_at: Callable[[list[int]], int | None] | None = None
  # Whether the slot and its cache stay when the answer ends, for `Engine.extend` or `Engine.release`.
  hold: bool = False

  def __post_init__(self):
    if not len(self.prompt):
      raise ValueError("Request: the prompt has no tokens; begin with at least one, e.g. the document end")
    if self.max_new_tokens < 1:
      raise ValueError(f"Request: max_new_tokens={self.max_new_tokens}, expected at least 1")
    if self.thinking_budget is not None and self.thinking_budget < 0:
      raise ValueError(f"Request: thinking_budget={self.thinking_budget}, expected 0 or more, or None for no limit")
    if len(self.stop_ids) > MAX_STOP_IDS:
      raise ValueError(f"Request: {len(self.stop_ids)} stop_ids, expected at most {MAX_STOP_IDS}")

  def check(self, config: ModelConfig, settings: EngineSettings, ids: ThinkingTokens) -> None:
    """Raises ValueError for what an engine for such a model, with such settings, can never run."""
    if len(self.prompt) >= settings.max_length:
      raise ValueError(
        f"Request: a prompt of {len(self.prompt)} tokens leaves no room in a context of {settings.max_length}"
      )
    V = config.vocab_size
    outside = [token for token in (*self.prompt, *self.sampling.logit_bias) if not 0 <= token < V]
    if outside:
      raise ValueError(f"Request: token id {outside[0]} is outside of the vocabulary of {V}")
    if self.thinking_budget is not None and not ids.sentence:
      raise ValueError("Request: thinking_budget needs a vocabulary with <think> and </think>")
    if self.sampling.adjusts and not settings.adjustments:
      raise ValueError("Request: penalties and logit_bias need an engine with adjustments=True")


@dataclasses.dataclass
class Result:
  """New tokens and what is known of each; all lists are equally long."""

  tokens: list[int] = dataclasses.field(default_factory=list)
  log_probabilities: list[float] = dataclasses.field(default_factory=list)  # of the model
  sampling_log_probabilities: list[float] = dataclasses.field(default_factory=list)  # of what was drawn from
  sampled: list[bool] = dataclasses.field(default_factory=list)  # False where inserted: no part of an RL loss
  # int16 [L, k] of each: whom the token before it went to; None where given, and without record_experts.
  experts: list[np.ndarray | None] = dataclasses.field(default_factory=list)
  finish_reason: FinishReason | None = None  # None while it runs
  thinking_halted: bool = False  # by the budget

  def __len__(self) -> int:
    return len(self.tokens)

  def append_given(self, tokens: Sequence[int]) -> None:
    """Tokens that the model did not write, such as a tool's result."""
    self.tokens += tokens
    self.log_probabilities += [0.0] * len(tokens)
    self.sampling_log_probabilities += [0.0] * len(tokens)
    self.sampled += [False] * len(tokens)
    self.experts += [None] * len(tokens)

  def cut(self, length: int) -> None:
    lists: tuple[list, ...] = (
      self.tokens,
      self.log_probabilities,
      self.sampling_log_probabilities,
      self.sampled,
      self.experts,
    )
    for values in lists:
      del values[length:]


def request_key(seed: int | None) -> np.ndarray:
  """uint32 [2] of a request's randomness."""
  return np.frombuffer(secrets.token_bytes(8) if seed is None else _digest(seed), np.uint32).copy()


def derived_seed(*parts: object) -> int:
  """A seed that depends on all parts, and on nothing else."""
  return int.from_bytes(_digest(*parts), "little")


def _digest(*parts: object) -> bytes:
  return hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
