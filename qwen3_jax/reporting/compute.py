"""What stages that learn from what they write cost, against what they reach: seconds, samples, operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.flops import forward_flops_per_token
from qwen3_jax.workdir import read_json

_BACKWARD = 2  # of a forward pass


class Point(NamedTuple):
  """Where a stage stands at an evaluation, with what it took to come there."""

  step: int
  seconds: float  # in steps: evaluation, compilation and saving are left out
  samples: float  # answers learnt from
  flops: float  # floating-point operations
  pass1: float
  passk: float  # NaN where only one answer was asked for


def forward_flops(stage: Path, length: int) -> float:
  """Of a forward pass over one token in sequences of `length`, with the model of a stage's folder.

  Raises OSError, ValueError or KeyError where its config.json cannot be read.
  """
  return forward_flops_per_token(ModelConfig.from_hf(read_json(stage / "config.json")), length)


def learning_curve(
  lines: Sequence[Mapping[str, Any]],
  rows: int,
  prompt_tokens: float,
  student: float,
  teacher: float = 0.0,
  *,
  epochs: int = 1,
  forward_passes: int = 0,
) -> list[Point]:
  """A stage's evaluations, from its lines of metrics.

  Operations are those of writing an answer (a forward pass over prompt and answer), of learning from it (three), of the
  teacher's forward pass, and of `forward_passes` more (of an old policy, of a reference). Padding, evaluation and
  answers that were replaced are left out. A logged step speaks for those since the one logged before.

  Args:
    lines: of metrics.jsonl.
    rows: answers learnt from in a step.
    prompt_tokens: mean length of a prompt.
    student: operations of a forward pass over a token.
    teacher: likewise.
    epochs: steps that learn from an answer.
    forward_passes: of the student, besides.
  """
  steps, seconds, flops = [0], [0.0], [0.0]
  for line in lines:
    if "step_seconds" in line and "rollout/response_tokens" in line and line["step"] > steps[-1]:
      count = line["step"] - steps[-1]
      tokens = count * rows * (prompt_tokens + line["rollout/response_tokens"])
      written = tokens / epochs * ((1 + forward_passes) * student + teacher)
      steps.append(line["step"])
      seconds.append(seconds[-1] + count * line["step_seconds"])
      flops.append(flops[-1] + written + tokens * (1 + _BACKWARD) * student)
  points = []
  for line in lines:
    if "validation/pass@1" in line:
      step = line["step"]
      spent = [float(np.interp(step, steps, values)) for values in (seconds, flops)]
      passk = line.get(pass_at_more(line), math.nan)
      points.append(Point(step, spent[0], step * rows / epochs, spent[1], line["validation/pass@1"], passk))
  return points


def pass_at_more(names: Iterable[str]) -> str:
  """The metric of held-out problems' pass@k with k > 1 among names; "" where there is none."""
  found = [name for name in names if name.startswith("validation/pass@") and name.count("/") == 1]
  return next((name for name in sorted(found) if name != "validation/pass@1"), "")
