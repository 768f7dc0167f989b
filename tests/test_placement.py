"""Rows of a global batch on the devices that hold them."""

import dataclasses

import numpy as np
import pytest

from qwen3_jax.batch import Batch
from qwen3_jax.placement import local_rows, to_devices
from qwen3_jax.sharding import batch_sharding, make_mesh

B, T = 8, 16


class HalfHere:
  """A sharding of which only some devices are this process's."""

  def __init__(self, sharding, devices):
    self.sharding, self.devices = sharding, devices

  def addressable_devices_indices_map(self, shape):
    indices = self.sharding.addressable_devices_indices_map(shape)
    return {device: indices[device] for device in self.devices}


@pytest.mark.parametrize(
  "shape, devices, expected",
  [
    ({"fsdp": 8}, range(8), range(8)),
    ({"fsdp": 8}, (2, 3), (2, 3)),
    ({"fsdp": 4, "tensor": 2}, (4, 5), (4, 5)),
    ({"data": 2, "context": 4}, (2, 3), range(4)),  # the second half of the first rows' tokens
    ({"data": 2, "fsdp": 2, "expert": 2}, (1, 4, 6), (1, 4, 6)),  # not neighbours, as on a torus
  ],
)
def test_local_rows(shape, devices, expected):
  mesh = make_mesh(shape)
  here = [mesh.devices.flat[i] for i in devices]
  assert local_rows(HalfHere(batch_sharding(mesh), here), (B, T)) == list(expected)


@pytest.mark.parametrize("shape", [{"fsdp": 8}, {"data": 2, "context": 4}, {"tensor": 8}, {"fsdp": 4, "context": 2}])
def test_every_device_gets_its_part(shape):
  sharding = batch_sharding(make_mesh(shape))
  whole = Batch(*(np.arange(B * T).reshape(B, T) + 1000 * i for i in range(len(dataclasses.fields(Batch)))))
  placed = to_devices(whole, range(B), sharding, (B, T))
  for field in dataclasses.fields(Batch):
    array = getattr(placed, field.name)
    assert array.sharding == sharding
    np.testing.assert_array_equal(array, getattr(whole, field.name))
