"""Names of topologies: what exists, and what a typo is told."""

import pytest

from qwen3_jax.compilation.chips import CHIPS
from qwen3_jax.compilation.topologies import TopologyError, larger_topology, parse_topology, prepare_environment
from qwen3_jax.sharding import make_mesh


@pytest.mark.parametrize(
  ("name", "devices"),
  [
    ("v5e:4x4", 16),
    ("v5p:2x2x1", 4),
    ("v5p:4x8x8", 256),
    ("v5p:12x12x12", 1728),
    ("v6e:16x16", 256),
    ("tpu7x:4x4x8", 256),
  ],
)
def test_known(name, devices):
  topology = parse_topology(name)
  assert topology.name == name and topology.device_count == devices
  assert parse_topology(name, num_slices=2).device_count == 2 * devices


def test_the_compiler_agrees_on_the_devices():
  pytest.importorskip("libtpu")
  prepare_environment()
  for name in ("v5e:2x4", "v5p:2x2x4", "v6e:4x4", "tpu7x:2x2x1"):
    topology = parse_topology(name)
    found = topology.devices()
    assert len(found) == topology.device_count
    assert len({tuple(device.coords) for device in found}) * topology.chip.devices_per_chip == len(found)
  assert {device.slice_index for device in parse_topology("v5p:2x2x1", num_slices=2).devices()} == {0, 1}


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("v5q:2x2x1", "no TPU generation 'v5q'. Did you mean v5p:2x2x1?"),
    ("v5p:4x8x9", "no slice of shape '4x8x9'. Did you mean v5p:4x8x8?"),
    ("v5p:4x4", "Did you mean v5p:2x2x4?"),
    ("v6e:16x16x1", "Did you mean v6e:16x16?"),
    ("v5p", "Did you mean v5p:"),
    ("v5p:-4x4x4", "no slice of shape '-4x4x4'"),
    ("v5p:0x4x4", "no slice of shape '0x4x4'"),
  ],
)
def test_a_typo_lists_what_there_is(name, says):
  with pytest.raises(TopologyError) as caught:
    parse_topology(name)
  assert says in str(caught.value)
  for generation in CHIPS:
    assert f"  {generation}: 2x2" in str(caught.value)
  assert "4x8x8" in str(caught.value) and "16x16" in str(caught.value)


def test_larger():
  assert larger_topology(parse_topology("v5p:2x2x1")).name == "v5p:2x2x2"
  assert larger_topology(parse_topology("v5e:8x16")).name == "v5e:16x16"
  assert larger_topology(parse_topology("v6e:16x16")) is None


def test_without_the_compiler(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(TopologyError, match="pip install 'jax"):
    prepare_environment()


def test_slices_are_joined_along_data():
  pytest.importorskip("libtpu")
  prepare_environment()
  devices = parse_topology("v5p:2x2x1", num_slices=2).devices()
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, devices)
  for index in range(2):
    assert {device.slice_index for device in mesh.devices[index].flat} == {index}
  with pytest.raises(ValueError, match="data must be a multiple of the 2 slices"):
    make_mesh({"fsdp": 8}, devices)


def test_a_mesh_axis_may_cover_a_part_of_a_side():
  pytest.importorskip("libtpu")
  prepare_environment()
  topology = parse_topology("v6e:4x4")
  mesh = make_mesh({"fsdp": 8, "context": 2}, topology.devices())
  for index in range(8):  # the two that share a context are neighbours
    a, b = (device.coords for device in mesh.devices[0, index, 0, :, 0])
    assert sum(abs(x - y) for x, y in zip(a, b)) == 1
