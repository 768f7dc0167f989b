"""From rewards of groups of answers to advantages (Shao et al. 2024, section 4.1.2)."""

from __future__ import annotations

import numpy as np

OVERLONG = ("keep", "mask", "penalize")
_SMALLEST_STD = 1e-6


def group_advantages(rewards: np.ndarray, normalize_std: bool) -> np.ndarray:
  """rewards [groups, samples] less the mean of their group and, if asked, over its standard deviation: same shape.

  A group of equal rewards has advantages of exactly 0. Without the division, easy and hard problems are not weighted up
  (Liu et al. 2025).
  """
  rewards = np.asarray(rewards, np.float64)
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  centred = np.where(zero_variance(rewards)[:, None], 0.0, centred)
  if normalize_std:
    centred = centred / (rewards.std(axis=1, keepdims=True) + _SMALLEST_STD)
  return centred


def zero_variance(rewards: np.ndarray) -> np.ndarray:
  """bool [groups]: whose rewards are all equal, so that they teach nothing."""
  return np.ptp(np.asarray(rewards, np.float64), axis=1) == 0


def overlong_penalty(lengths: np.ndarray, limit: int, buffer: int) -> np.ndarray:
  """What answers of so many tokens lose: 0 up to limit - buffer, then linearly up to 1 at the limit.

  The soft punishment of DAPO (Yu et al. 2025, section 3.4). `lengths` counts tokens, not characters.
  """
  return np.clip((np.asarray(lengths) - (limit - buffer)) / max(buffer, 1), 0.0, 1.0)
