"""Metrics as tables, as the command prints them and the report shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qwen3_jax.evaluation.confidence import Interval

_BUDGET, _UNLIMITED = "budget ", "unlimited"


class ResultTable(NamedTuple):
  header: tuple[str, ...]  # the first column names what the others are numbers of
  rows: list[tuple[str, ...]]


def single_metrics(metrics: Iterable[str]) -> list[str]:
  """Those that belong to no group."""
  return [name for name in metrics if "/" not in name]


def group_tables(metrics: Mapping[str, float], intervals: Mapping[str, Interval]) -> list[ResultTable]:
  """Metrics GROUP/NAME: a row for each group, in a table with the groups that come next and have the same names."""
  groups: dict[str, dict[str, str]] = {}
  for metric, value in metrics.items():
    group, slash, name = metric.rpartition("/")
    if slash:
      groups.setdefault(group, {})[name] = shown(value, intervals.get(metric))
  tables: list[ResultTable] = []
  for group, values in groups.items():
    header = ("", *values)
    if not tables or tables[-1].header != header:
      tables.append(ResultTable(header, []))
    tables[-1].rows.append((group, *values.values()))
  return tables


def shown(value: float, interval: Interval | None = None) -> str:
  """A value, with its interval if there is one."""
  if interval is not None:
    return f"{value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
  whole = abs(value) >= 1 and float(value).is_integer()
  return f"{value:,.0f}" if whole else f"{value:.4f}"


def budget_group(budget: int | None) -> str:
  """The group of metrics of a thinking budget; None: of unlimited thinking."""
  return _BUDGET + (_UNLIMITED if budget is None else str(budget))


def budget_of(group: str) -> float | None:
  """The budget whose group this is, infinity for unlimited thinking; None where it is none's."""
  name = group.removeprefix(_BUDGET)
  if name == group:
    return None
  if name == _UNLIMITED:
    return math.inf
  return float(name) if name.isascii() and name.isdigit() and len(name) < 18 else None
