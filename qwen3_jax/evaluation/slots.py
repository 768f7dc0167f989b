"""An engine with a given number of slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import fitting_settings
from qwen3_jax.rollout.thinking_budget import ThinkingTokens


def settings_with_slots(
  config: ModelConfig, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], slots: int, options: Mapping[str, Any]
) -> EngineSettings | None:
  """Settings that fit prompts of token ids and `complete`'s options; None, which fits them too, for 0 slots."""
  if not slots:
    return None
  longest = max(map(len, prompts), default=0) + options["max_new_tokens"]
  if options.get("thinking_budget") is not None:
    longest += options["thinking_budget"] + len(ThinkingTokens.of(tokenizer).sentence)
  return dataclasses.replace(fitting_settings(config, slots, longest, adjustments=True), slots=slots)
