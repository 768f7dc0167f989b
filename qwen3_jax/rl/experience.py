"""Experience: trajectories as rows that an objective reads, and their file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.batch import Batch, Rollout, Teachers
from qwen3_jax.rollout.multi_turn import Trajectory

_PARTS = {"rollout": Rollout, "teachers": Teachers}  # fields of a batch that have fields of their own


def experience(
  trajectories: Sequence[Trajectory],
  advantages: Sequence[float],
  counted: Sequence[bool],
  length: int,
  experts: tuple[int, int] | None = None,
) -> Batch:
  """One row for each trajectory: numpy arrays [N, T].

  Args:
    advantages: of each trajectory, for all of its tokens.
    counted: whether it is trained on; of those that are not, nothing counts.
    length: T, at least the tokens of any trajectory but one.
    experts: (L, k) of a model whose trajectories have recorded experts.
  """
  N = len(trajectories)
  integers = lambda: np.zeros((N, length), np.int32)
  floats = lambda: np.zeros((N, length), np.float32)
  batch = Batch(integers(), integers(), floats(), integers(), integers())
  rollout = Rollout(advantages=floats(), shares=floats(), entropy_bonus=floats(), sampling_log_probabilities=floats())
  replayed = None if experts is None else np.full((N, length, *experts), -1, np.int16)
  for n, (trajectory, advantage) in enumerate(zip(trajectories, advantages)):
    tokens = [*trajectory.prompt, *trajectory.tokens]
    end = len(tokens) - 1
    if end < 1:
      continue  # one that did not start
    if end > length:
      raise ValueError(f"a trajectory of {len(tokens)} tokens does not fit rows of {length} and its last token")
    batch.tokens[n, :end] = tokens[:-1]
    batch.targets[n, :end] = tokens[1:]
    batch.positions[n, :end] = np.arange(end)
    batch.segment_ids[n, :end] = 1
    answer = slice(len(trajectory.prompt) - 1, end)  # positions that predict what follows the prompt
    sampled = np.asarray(trajectory.sampled, np.float32) * bool(counted[n])
    batch.loss_weights[n, answer] = sampled
    rollout.advantages[n, answer] = sampled * advantage
    rollout.shares[n, answer] = sampled / max(sampled.sum(), 1.0)
    rollout.sampling_log_probabilities[n, answer] = sampled * np.asarray(trajectory.sampling_log_probabilities)
    if replayed is not None:
      for place, chosen in enumerate(trajectory.experts, answer.start):
        if chosen is not None:
          replayed[n, place] = chosen
  return dataclasses.replace(batch, rollout=dataclasses.replace(rollout, experts=replayed))


def take_rows(batch: Batch, rows: np.ndarray) -> Batch:
  """Those rows of a batch of numpy arrays."""
  import jax

  return jax.tree.map(lambda x: x[rows], batch)


def save_batch(path: Path, batch: Batch) -> None:
  """Writes a batch of numpy arrays; `path` is replaced in one step."""
  parts = {"": batch, **{f"{name}.": getattr(batch, name) for name in _PARTS}}
  arrays: dict[str, Any] = {
    f"{prefix}{field.name}": getattr(part, field.name)
    for prefix, part in parts.items()
    if part is not None
    for field in dataclasses.fields(part)
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.partial")
  with partial.open("wb") as file:
    np.savez(file, **{name: array for name, array in arrays.items() if hasattr(array, "shape")})
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


def load_batch(path: Path) -> Batch:
  """What `save_batch` wrote."""
  with np.load(path, allow_pickle=False) as arrays:
    named = {name: arrays[name] for name in arrays}
  rest = {name: array for name, array in named.items() if "." not in name}
  parts = {}
  for part, make in _PARTS.items():
    fields = {name.removeprefix(f"{part}."): array for name, array in named.items() if name.startswith(f"{part}.")}
    if fields:
      parts[part] = make(**fields)
  return Batch(**rest, **parts)
