"""The rows that requests start with, made on the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.rollout import decode
from qwen3_jax.rollout.decode import Rows
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.request import MAX_STOP_IDS, Request
from qwen3_jax.rollout.sampling import Adjustments, Controls
from qwen3_jax.rollout.thinking_budget import NO_BUDGET, Thinking, ThinkingTokens


def row_of(
  config: ModelConfig,
  settings: EngineSettings,
  ids: ThinkingTokens,
  request: Request,
  key: np.ndarray,
  tokens: list[int],
  generated: list[int],
) -> Rows:
  """The row of a request whose answer, or further answer, follows `tokens`, of which the model wrote `generated`."""
  budget = NO_BUDGET if request.thinking_budget is None else request.thinking_budget
  stop_ids = np.full(MAX_STOP_IDS, -1, np.int32)
  stop_ids[: len(request.stop_ids)] = request.stop_ids
  numbers: dict[str, Any] = {
    "token": tokens[-1],
    "length": len(tokens) - 1,
    "ended": decode.RUNNING,
    "drawn": len(tokens) - len(request.prompt),
    "limit": request.max_new_tokens,
    "left": request.max_new_tokens,
    "room": settings.max_length - len(tokens),
  }
  thinking: dict[str, Any] = {
    "phase": np.int32(ids.phase(tokens)),
    "thought": np.int32(0),
    "budget": np.int32(budget),
    "inserting": np.int32(-1),
    "halted": np.int32(0),
  }
  arrays: dict[str, Any] = {name: np.int32(value) for name, value in numbers.items()} | {
    "running": np.bool_(True),
    "key": key,
    "stop_ids": stop_ids,
    "thinking": Thinking(**thinking),
    "controls": jax.tree.map(lambda x: x[0], Controls.of([request.sampling])),
    "adjustments": _adjustments(config.vocab_size, request, generated) if settings.adjustments else None,
  }
  return Rows(**arrays)


def idle_row(config: ModelConfig, settings: EngineSettings, ids: ThinkingTokens) -> Rows:
  """The row of a slot that nothing runs in."""
  row = row_of(config, settings, ids, Request([0], 1), np.zeros(2, np.uint32), [0], [])
  changes: dict[str, Any] = {"running": np.bool_(False)}
  return dataclasses.replace(row, **changes)


def _adjustments(V: int, request: Request, generated: list[int]) -> Adjustments:
  prompted, bias = np.zeros(V, bool), np.zeros(V, np.float32)
  prompted[list(request.prompt)] = True
  for token, value in request.sampling.logit_bias.items():
    bias[token] = value
  counts = np.bincount(np.array(generated, np.int32), minlength=V).astype(np.int32)
  arrays: dict[str, Any] = {"generated": counts, "prompted": prompted, "bias": bias}
  return Adjustments(**arrays)
