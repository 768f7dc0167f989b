"""What the compiler is told, by the devices that it compiles for."""

from __future__ import annotations

from jax.sharding import Mesh

# Gathers and scatters run on the SparseCores, beside the matrix unit; without these the compiler has the device wait.
_SPARSE_CORE = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
  "xla_tpu_enable_sparse_core_offload_queuing_in_lhs": "true",  # several wait for the SparseCores, not the device
}
_WITHOUT_SPARSE_CORES = ("TPU v5 lite", "TPU v5e")


def compiler_options(mesh: Mesh) -> dict[str, str]:
  """Options for `jax.jit`."""
  device = mesh.devices.flat[0]
  if device.platform != "tpu" or mesh.size == 1 or device.device_kind in _WITHOUT_SPARSE_CORES:
    return {}
  return dict(_SPARSE_CORE)
