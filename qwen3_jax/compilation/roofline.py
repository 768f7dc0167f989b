"""The speed that peak arithmetic, memory and network would allow, and which of them binds."""

from __future__ import annotations

import dataclasses

from qwen3_jax.compilation.chips import Chip
from qwen3_jax.compilation.collectives import Network
from qwen3_jax.compilation.program_cost import Cost


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one step on each resource at its peak."""

  compute: float  # matrix unit, recomputation included
  memory: float  # HBM
  ici: float
  dcn: float  # between slices

  @property
  def network(self) -> float:
    return self.ici + self.dcn

  @property
  def overlapped(self) -> float:
    """Step time if all resources work at once."""
    return max(self.compute, self.memory, self.network)

  @property
  def serial(self) -> float:
    """Step time if one works at a time."""
    return self.compute + self.memory + self.network

  @property
  def binding(self) -> str:
    times = {"compute": self.compute, "memory": self.memory, "network": self.network}
    return max(times, key=times.__getitem__)


def roofline(cost: Cost, chip: Chip, network: Network) -> Roofline:
  """Of one device. Collectives are taken one after another, each at the bandwidth of its own axes."""
  seconds = {False: 0.0, True: 0.0}
  for collective in cost.collectives:
    seconds[network.crosses_slices(collective)] += network.seconds(collective) * collective.count
  return Roofline(
    compute=cost.flops / chip.device_peak_flops,
    memory=cost.hbm_bytes / chip.device_hbm_bandwidth,
    ici=seconds[False],
    dcn=seconds[True],
  )
