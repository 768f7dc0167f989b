"""The rows that requests start with, made on the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.rollout import decode
from qwen3_jax.rollout.decode import Rows
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.request import MAX_STOP_IDS, Request
from qwen3_jax.rollout.sampling import Adjustments, Controls
from qwen3_jax.rollout.thinking_budget import NO_BUDGET, Thinking, ThinkingTokens


class Start(NamedTuple):
  """Where a request begins, or goes on."""

  request: Request
  key: np.ndarray  # of its randomness
  tokens: list[int]  # prompt and answer; what comes next follows them
  generated: list[int]  # those of the answer that the model wrote


_IDLE = Start(Request([0], 1), np.zeros(2, np.uint32), [0], [])


def rows_of(config: ModelConfig, settings: EngineSettings, ids: ThinkingTokens, starts: Sequence[Start | None]) -> Rows:
  """The rows of requests; None is one that nothing runs in."""
  R, known = len(starts), [start or _IDLE for start in starts]
  integers = lambda values: np.fromiter(values, np.int32, R)
  zeros = lambda: np.zeros(R, np.int32)
  lengths = integers(len(start.tokens) for start in known)
  limits = integers(start.request.max_new_tokens for start in known)
  budgets = (start.request.thinking_budget for start in known)
  stop_ids = np.full((R, MAX_STOP_IDS), -1, np.int32)
  for row, start in zip(stop_ids, known):
    row[: len(start.request.stop_ids)] = start.request.stop_ids
  thinking: dict[str, Any] = {
    "phase": integers(ids.phase(start.tokens) for start in known),
    "thought": zeros(),
    "budget": integers(NO_BUDGET if budget is None else budget for budget in budgets),
    "inserting": np.full(R, -1, np.int32),
    "halted": zeros(),
  }
  arrays: dict[str, Any] = {
    "token": integers(start.tokens[-1] for start in known),
    "length": lengths - 1,
    "running": np.fromiter((start is not None for start in starts), bool, R),
    "ended": np.full(R, decode.RUNNING, np.int32),
    "drawn": lengths - integers(len(start.request.prompt) for start in known),
    "key": np.stack([start.key for start in known]),
    "limit": limits,
    "left": limits.copy(),
    "room": settings.max_length - lengths,
    "stop_ids": stop_ids,
    "thinking": Thinking(**thinking),
    "controls": Controls.of([start.request.sampling for start in known]),
    "adjustments": _adjustments(config.vocab_size, known) if settings.adjustments else None,
  }
  return Rows(**arrays)


def packed(rows: Rows) -> np.ndarray:
  """All that rows hold but their adjustments, int32 [A, width]: one array gets to devices faster than twenty."""
  columns = jax.tree.leaves(dataclasses.replace(rows, adjustments=None))
  as_integers = lambda x: x.astype(np.int32) if x.dtype == bool else x.view(np.int32)
  return np.concatenate([as_integers(x).reshape(len(x), -1) for x in columns], axis=1)


def unpacked(columns: jax.Array, adjustments: Adjustments | None, like: Rows) -> Rows:
  """The rows that `packed` made columns of, in a program; `like` has their dtypes and widths."""
  leaves, structure = jax.tree.flatten(dataclasses.replace(like, adjustments=None))
  made, start = [], 0
  for leaf in leaves:
    width = math.prod(leaf.shape[1:])
    part = columns[:, start : start + width].reshape(-1, *leaf.shape[1:])
    made.append(part != 0 if leaf.dtype == bool else jax.lax.bitcast_convert_type(part, leaf.dtype))
    start += width
  return dataclasses.replace(jax.tree.unflatten(structure, made), adjustments=adjustments)


def _adjustments(V: int, starts: Sequence[Start]) -> Adjustments:
  R = len(starts)
  generated, prompted, bias = np.zeros((R, V), np.int32), np.zeros((R, V), bool), np.zeros((R, V), np.float32)
  for r, start in enumerate(starts):
    prompted[r, list(start.request.prompt)] = True
    generated[r] = np.bincount(np.array(start.generated, np.int32), minlength=V)
    for token, value in start.request.sampling.logit_bias.items():
      bias[r, token] = value
  arrays: dict[str, Any] = {"generated": generated, "prompted": prompted, "bias": bias}
  return Adjustments(**arrays)
