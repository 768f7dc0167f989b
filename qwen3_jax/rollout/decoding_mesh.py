"""The mesh to decode on, of the devices that a model is on."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.sharding import MESH_AXES


def decoding_mesh(config: ModelConfig, mesh: Mesh) -> Mesh | None:
  """The devices of `mesh`, in its order; None for one device.

  Heads and matrices are split as far as key/value heads go, then experts, then slots.
  """
  if mesh.size == 1:
    return None
  sizes = decoding_shape(config, mesh.size)
  devices = np.asarray(mesh.devices).reshape([sizes.get(axis, 1) for axis in MESH_AXES])
  return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def decoding_shape(config: ModelConfig, devices: int) -> dict[str, int]:
  """Axes of a mesh of so many devices."""
  tensor = math.gcd(devices, config.num_kv_heads)
  expert = math.gcd(devices // tensor, config.num_experts) if config.is_moe else 1
  return {"data": devices // tensor // expert, "expert": expert, "tensor": tensor}


def mesh_of(params: Parameters) -> Mesh | None:
  """The mesh that parameters are laid out on; None on one device."""
  sharding = jax.tree.leaves(params)[0].sharding
  if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
    return None
  assert isinstance(sharding.mesh, Mesh)
  return sharding.mesh
