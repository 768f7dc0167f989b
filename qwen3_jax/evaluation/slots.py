"""An engine with a given number of slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import fitting_settings, longest_sequence
from qwen3_jax.rollout.thinking_budget import ThinkingTokens


def settings_with_slots(
  config: ModelConfig, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], slots: int, options: Mapping[str, Any]
) -> EngineSettings | None:
  """Settings that fit prompts of token ids and `complete`'s options; None, which fits them too, for 0 slots."""
  if not slots:
    return None
  ids = ThinkingTokens.of(tokenizer)
  longest = longest_sequence(prompts, ids, options["max_new_tokens"], options.get("thinking_budget"))
  return dataclasses.replace(fitting_settings(config, slots, longest, adjustments=True), slots=slots)
