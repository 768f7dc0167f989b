"""The TPU core that a Pallas kernel is being traced for."""

from __future__ import annotations

import dataclasses

from jax.experimental.pallas import tpu as pltpu


@dataclasses.dataclass(frozen=True)
class Core:
  """What block sizes depend on."""

  vmem_bytes: int
  cores: int  # that share a device's memory, and run the `parallel` grid steps of a kernel between them
  matmul_size: int  # rows and columns of a matrix unit


SMALLEST = Core(vmem_bytes=64 * 2**20, cores=2, matmul_size=128)  # what fits here fits every chip since v5p


def core() -> Core:
  """The core of the mesh or backend in use; `SMALLEST` where that is no TPU, as while tracing for another platform."""
  try:
    info = pltpu.get_tpu_info()
  except Exception:  # its type depends on what is missing
    return SMALLEST
  return Core(info.vmem_capacity_bytes, info.num_cores, info.mxu_column_size)
