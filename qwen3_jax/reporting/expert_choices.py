"""Which experts the tokens of each domain choose: counts in WORKDIR/stages/STAGE/experts.json, and what they say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from qwen3_jax.workdir import read_json, write_json

SPECIALISATION = "expert_specialisation"  # the metric's name after "validation/"


@dataclasses.dataclass(frozen=True)
class ExpertChoices:
  """At one evaluation of a stage."""

  step: int
  counts: dict[str, np.ndarray]  # domain -> [L, E]: how many of its tokens' k choices fell on each expert

  @property
  def shares(self) -> np.ndarray:
    """[domains, L, E]: of a domain's choices, those of each expert."""
    counts = np.stack([counts.astype(np.float64) for counts in self.counts.values()])
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def specialisation(shares: np.ndarray) -> np.ndarray:
  """Of each layer, how much an expert says of the domain: shares [domains, L, E] -> [L], nats.

  The mutual information of domain and chosen expert where domains are equally frequent, which is the mean divergence
  (KL) of a domain's shares from the mean over domains: 0 where all domains choose alike, ln(domains) where no two share
  an expert. Counts of n choices a domain put it too high by about (experts - 1) / 2n.
  """
  mean = shares.mean(axis=0)
  return np.maximum(_entropy(mean) - _entropy(shares).mean(axis=0), 0.0)


def _entropy(shares: np.ndarray) -> np.ndarray:
  return -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=-1)


def write_expert_choices(stage: Path, step: int, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Replaces the counts in a stage's folder, from the first process; returns the metrics.

  `counts`: domain -> [L, E], of all devices. The metric, which needs two domains, is the mean of `specialisation` over
  layers.
  """
  found = ExpertChoices(step, dict(counts))
  if jax.process_index() == 0:
    written = {domain: np.rint(values).astype(int).tolist() for domain, values in counts.items()}
    write_json(_path(stage), {"step": step, "counts": written})
  return {SPECIALISATION: float(specialisation(found.shares).mean())} if len(counts) > 1 else {}


def read_expert_choices(stage: Path, notices: list[str]) -> ExpertChoices | None:
  """None where a stage has none; a damaged file is named in a notice."""
  path = _path(stage)
  if not path.exists():
    return None
  try:
    content = read_json(path)
    counts = {str(domain): np.asarray(values, np.float64) for domain, values in content["counts"].items()}
    shapes = {values.shape for values in counts.values()}
    is_valid = len(shapes) == 1 and len(next(iter(shapes))) == 2 and 0 not in next(iter(shapes))
    if is_valid and all(np.isfinite(values).all() and (values >= 0).all() for values in counts.values()):
      return ExpertChoices(int(content["step"]), counts)
  except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
    pass
  notices.append(f"{stage.name}/{path.name} is damaged")
  return None


def _path(stage: Path) -> Path:
  return stage / "experts.json"


def most(shares: np.ndarray) -> float:
  """What a domain's specialisation can be at most, nats."""
  return math.log(min(shares.shape[0], shares.shape[2]))
