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
  waits: tuple[float, ...]  # of each collective: the part with too little scheduled beside it

  @property
  def network(self) -> float:
    return self.ici + self.dcn

  @property
  def waiting(self) -> float:
    """The part of `network` in which the device waits."""
    return sum(self.waits)

  @property
  def overlapped(self) -> float:
    """Step time if all resources work at once."""
    return max(self.compute, self.memory, self.network)

  @property
  def scheduled(self) -> float:
    """Step time if arithmetic and HBM work at once, and the network as the compiler has scheduled it."""
    return max(self.network, max(self.compute, self.memory) + self.waiting)

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
    waits=tuple(_waits(cost, chip, network)),
  )


def _waits(cost: Cost, chip: Chip, network: Network) -> list[float]:
  """Of each of the cost's collectives, seconds of a step in which its device has nothing else to do.

  The schedule is gone through with arithmetic and HBM at their peaks. Collectives along different sides of the torus
  use different links; along the same side they come one after another.
  """
  waited = [0.0] * len(cost.collectives)
  for timeline in cost.timelines:
    clock = work = 0.0  # the device's time, and what of it is work
    free: dict[int, float] = {}  # when the links of a side are
    under_way: dict[str, tuple[float, list[int]]] = {}  # until when, which
    for event in timeline.events:
      done = max(event.flops / chip.device_peak_flops, event.hbm_bytes / chip.device_hbm_bandwidth)
      clock, work = clock + done - work, done
      if event.starts:
        end, started = clock, [timeline.first + i for i in event.collectives]
        for collective in (cost.collectives[i] for i in started):
          sides = network.sides(collective)
          end = max([end, *(free.get(side, 0.0) for side in sides)]) + network.seconds(collective)
          free |= dict.fromkeys(sides, end)
        under_way[event.starts] = end, started
      if event.needs in under_way:
        end, started = under_way.pop(event.needs)
        for i in started:
          waited[i] += max(end - clock, 0.0) * timeline.times / len(started)
        clock = max(clock, end)
  return waited
