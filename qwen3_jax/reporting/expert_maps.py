"""Which experts the tokens of each domain choose, as heat maps (after Qiu et al. 2025, "Demons in the Detail")."""

from __future__ import annotations

import dataclasses

import numpy as np

from qwen3_jax.reporting.expert_choices import ExpertChoices, most, read_expert_choices, specialisation
from qwen3_jax.reporting.run_record import RunRecord, visible
from qwen3_jax.reporting.table import Table
from qwen3_jax.workdir import Workdir

_LAYERS = 4  # shown, those with the largest specialisation
_MOST_WRITTEN = 16  # experts up to which cells have numbers


@dataclasses.dataclass(frozen=True)
class Cell:
  depth: float  # of the colour, 0 to 1
  text: str


@dataclasses.dataclass(frozen=True)
class LayerMap:
  title: str
  rows: list[tuple[str, list[Cell]]]  # domain, a cell for each expert


@dataclasses.dataclass(frozen=True)
class ExpertMaps:
  """Of the last stage that has them; the table is of all."""

  title: str
  note: str
  experts: int
  layers: list[LayerMap]
  table: Table


def expert_maps(run: RunRecord, workdir: Workdir) -> ExpertMaps | None:
  """None for a run of dense models."""
  found = [(stage.name, read_expert_choices(workdir.stage(stage.name), run.notices)) for stage in run.stages]
  known = [(name, choices) for name, choices in found if choices is not None]
  if not known:
    return None
  several = [(name, choices) for name, choices in known if len(choices.counts) > 1]
  name, choices = (several or known)[-1]
  shares = choices.shares
  own = specialisation(shares)
  layers = sorted(np.argsort(-own, kind="stable")[:_LAYERS].tolist())
  experts = shares.shape[2]
  top = float(shares[:, layers].max())
  note = (
    f"Of the choices of a domain's validation tokens at step {choices.step:,}, the share of each expert"
    f" in percent: from none to {100 * top:.0f}, an even share is {100 / experts:.3g}."
  )
  if len(layers) < len(own):
    note += f" The {len(layers)} of {len(own)} layers in which domains differ most."
  return ExpertMaps(
    f"after {visible(name)}",
    note,
    experts,
    [_layer(choices, shares[:, layer], layer, float(own[layer]), top) for layer in layers],
    _table(several),
  )


def _layer(choices: ExpertChoices, shares: np.ndarray, layer: int, own: float, top: float) -> LayerMap:
  """shares [domains, E]"""
  written = shares.shape[1] <= _MOST_WRITTEN
  cell = lambda share: Cell(round(share / top, 3) if top else 0.0, f"{100 * share:.0f}" if written else "")
  rows = [(visible(domain), [cell(float(share)) for share in of]) for domain, of in zip(choices.counts, shares)]
  title = f"layer {layer}" + (f" · {own:.3f} nats" if len(rows) > 1 else "")
  return LayerMap(title, rows)


def _table(several: list[tuple[str, ExpertChoices]]) -> Table:
  """How specialised experts are at the end of each stage with several domains."""
  rows = []
  for name, choices in several:
    shares = choices.shares
    own = specialisation(shares)
    layer = int(np.argmax(own))
    least = min(float(counts.sum(axis=1).min()) for counts in choices.counts.values())
    noise = (shares.shape[2] - 1) / (2 * least) if least else np.nan
    rows.append(
      (
        visible(name),
        f"{choices.step:,}",
        f"{own.mean():.4f}",
        f"{own[layer]:.4f} (layer {layer})",
        f"{most(shares):.3f}",
        f"{noise:.4f}",
      )
    )
  header = ("Stage", "Step", "Specialisation, nats", "Highest of a layer", "Most there can be", "Of chance, at most")
  note = (
    "Specialisation: mutual information of a token's domain and the expert it goes to, domains weighted alike, mean"
    " over layers; 0 where all domains choose alike. Of chance: what domains that choose alike would show with as few"
    " tokens, were their choices independent."
  )
  return Table("Specialisation of experts", header, rows, frozenset({0}), note)
