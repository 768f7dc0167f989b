"""How the report prints numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

from qwen3_jax.evaluation.confidence import Interval

MISSING = "–"
_UNITS = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_number(value: Any) -> TypeGuard[int | float]:
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def number(value: Any, show: Callable[[Any], str]) -> str:
  """`show(value)` of a finite number, a dash of anything else."""
  return show(value).replace("-", "−") if is_number(value) else MISSING


def loss(value: float) -> str:
  return f"{value:.3f}"


def perplexity(loss: float) -> str:
  return f"{math.exp(loss):,.1f}" if loss < 11 else f"{math.exp(min(loss, 700)):.1e}"


def percent(value: float, interval: Interval | None = None) -> str:
  """A share, with its interval if there is one."""
  if interval is None:
    return f"{100 * value:.1f}%"
  return f"{100 * value:.1f}% [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def operations(value: float) -> str:
  """1.5e13 as "15 T"; floating-point operations, in the units of FLOP/s."""
  for unit, suffix in _UNITS:
    if value >= 0.9995 * unit:
      return f"{value / unit:.3g} {suffix}"
  return f"{value:.3g}"
