"""What a roofline needs to know of each TPU generation."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip; a chip of `devices_per_chip` devices shares them evenly.

  Bandwidths are bytes per second. `link_bandwidth` is one ICI link in one direction: the published figure counts both
  directions of all `torus_dimensions * 2` links.
  """

  name: str
  peak_flops: float  # bfloat16 operations per second
  hbm_bandwidth: float
  hbm_limit: int  # bytes per device that the compiler lets a program use
  torus_dimensions: int
  link_bandwidth: float
  dcn_bandwidth: float  # data-centre network
  devices_per_chip: int
  source: str

  @property
  def device_peak_flops(self) -> float:
    return self.peak_flops / self.devices_per_chip

  @property
  def device_hbm_bandwidth(self) -> float:
    return self.hbm_bandwidth / self.devices_per_chip


def _link(bidirectional_gigabytes: float, torus_dimensions: int) -> float:
  return bidirectional_gigabytes * 1e9 / 2 / (2 * torus_dimensions)


# Peak, bandwidths and ICI per chip: the page of each generation in the Cloud TPU documentation (read in 2026; the HBM
# bandwidths of v5p and v6e as the TPU7x page lists them). DCN of v5e: 6.4 Tbit/s per pod of 256. hbm_limit: what
# libtpu 0.0.42 names in its out-of-memory error for that topology.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name="v5e",
      peak_flops=197e12,
      hbm_bandwidth=819e9,
      hbm_limit=int(15.75 * GIB),
      torus_dimensions=2,
      link_bandwidth=_link(400, 2),
      dcn_bandwidth=6.4e12 / 8 / 256,
      devices_per_chip=1,
      source="https://cloud.google.com/tpu/docs/v5e",
    ),
    Chip(
      name="v5p",
      peak_flops=459e12,
      hbm_bandwidth=2765e9,
      hbm_limit=int(95.74 * GIB),
      torus_dimensions=3,
      link_bandwidth=_link(1200, 3),
      dcn_bandwidth=50e9 / 8,
      devices_per_chip=1,
      source="https://cloud.google.com/tpu/docs/v5p",
    ),
    Chip(
      name="v6e",
      peak_flops=918e12,
      hbm_bandwidth=1638e9,
      hbm_limit=int(31.25 * GIB),
      torus_dimensions=2,
      link_bandwidth=_link(800, 2),
      dcn_bandwidth=100e9 / 8,
      devices_per_chip=1,
      source="https://cloud.google.com/tpu/docs/v6e",
    ),
    Chip(
      name="tpu7x",
      peak_flops=2307e12,
      hbm_bandwidth=7380e9,
      hbm_limit=int(94.75 * GIB),
      torus_dimensions=3,
      link_bandwidth=_link(1200, 3),
      dcn_bandwidth=100e9 / 8,
      devices_per_chip=2,
      source="https://cloud.google.com/tpu/docs/tpu7x",
    ),
  )
}
# A tpu7x chip's two devices are joined by a link six times as fast as an ICI link (same page).
ON_CHIP_LINKS = 6
