"""TPU topologies without TPUs: names such as v5p:4x8x8, and the devices that libtpu describes for them."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
from typing import TYPE_CHECKING

from qwen3_jax.compilation.chips import CHIPS, Chip

if TYPE_CHECKING:
  import jax

# Slices on offer (pages named in chips.py). Larger 3D ones may be any whole cubes: multiples of 4 along each side.
_PLANES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_BOXES = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
  *("8x8x16", "8x16x16", "16x16x16", "16x16x24"),
)
# libtpu otherwise asks the machine's metadata server which TPU it sits on, and lets one process at a time load it.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class TopologyError(ValueError):
  """A topology that does not exist or cannot be compiled for here."""


@dataclasses.dataclass(frozen=True)
class Topology:
  chip: Chip
  shape: tuple[int, ...]  # chips along each side of one slice
  num_slices: int = 1

  @property
  def name(self) -> str:
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  @property
  def device_count(self) -> int:
    return math.prod(self.shape) * self.chip.devices_per_chip * self.num_slices

  def wraps(self, dimension: int) -> bool:
    """Whether the links along a side of the slice close to a ring.

    3D slices of whole cubes do; in the 2D generations only a side of 16 does.
    """
    if self.chip.torus_dimensions == 3:
      return all(side % 4 == 0 for side in self.shape)
    return self.shape[dimension] == 16

  def devices(self) -> list[jax.Device]:
    """Descriptions of the devices, in order of their ids. Raises TopologyError when libtpu refuses."""
    from jax.experimental import topologies

    options = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
    try:
      devices = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices
    except Exception as error:  # libtpu raises more than one type
      raise TopologyError(f"topology {self.name!r}: the TPU compiler refuses it: {error}") from error
    return list(devices)


def parse_topology(text: str, num_slices: int = 1) -> Topology:
  """`v5p:4x8x8` as a Topology. Raises TopologyError that lists what there is and names the nearest."""
  generation, colon, sides = text.partition(":")
  if generation not in CHIPS:
    near = difflib.get_close_matches(generation, CHIPS, n=1, cutoff=0.3)
    hint = f" Did you mean {near[0]}:{sides or '...'}?" if near else ""
    raise TopologyError(f"topology {text!r}: no TPU generation {generation!r}.{hint}\n{_known()}")
  if num_slices < 1:
    raise TopologyError(f"num_slices={num_slices}: must be at least 1")
  chip = CHIPS[generation]
  offered = _offered(chip)
  shape = tuple(int(side) if side.isdecimal() else 0 for side in sides.split("x")) if colon else ()
  cubes = len(shape) == 3 == chip.torus_dimensions and all(side > 0 and side % 4 == 0 for side in shape)
  if sides not in offered and not cubes:
    size = math.prod(shape) if shape and all(shape) else None
    by_size = min(offered, key=lambda name: (abs(_size(name) - size), name)) if size else None
    near = [by_size] if by_size else difflib.get_close_matches(sides, offered, n=1, cutoff=0.0)
    raise TopologyError(
      f"topology {text!r}: {generation} has no slice of shape {sides!r}."
      f" Did you mean {generation}:{near[0]}?\n{_known()}"
    )
  return Topology(chip, shape, num_slices)


def _offered(chip: Chip) -> tuple[str, ...]:
  return _PLANES if chip.torus_dimensions == 2 else _BOXES


def _size(shape: str) -> int:
  return math.prod(map(int, shape.split("x")))


def _known() -> str:
  lines = [f"  {name}: {', '.join(_offered(chip))}" for name, chip in CHIPS.items()]
  cubes = ", ".join(name for name, chip in CHIPS.items() if chip.torus_dimensions == 3)
  return "\n".join(["Topologies:", *lines, f"  {cubes}: also any AxBxC of multiples of 4"])


def larger_topology(topology: Topology) -> Topology | None:
  """The smallest slice on offer with at least twice the chips; None when there is none."""
  size = math.prod(topology.shape)
  larger = [name for name in _offered(topology.chip) if _size(name) >= 2 * size]
  if not larger:
    return None
  shape = tuple(map(int, min(larger, key=_size).split("x")))
  return dataclasses.replace(topology, shape=shape)


def prepare_environment() -> None:
  """Sets what libtpu reads when it is loaded. Raises TopologyError when libtpu is missing."""
  if importlib.util.find_spec("libtpu") is None:
    raise TopologyError("the TPU compiler is not installed: pip install 'jax[tpu]'")
  os.environ.update(_ENVIRONMENT)
  import jax

  jax.config.update("jax_platforms", "cpu")  # jax may have been imported before, and read the variable then
  jax.config.update("jax_enable_compilation_cache", False)  # it cannot hold programs for devices that are not there
