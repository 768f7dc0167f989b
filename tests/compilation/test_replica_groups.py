"""Groups of devices in every form that XLA prints, against numpy."""

import itertools

import numpy as np
import pytest

from qwen3_jax.compilation.replica_groups import (
  OTHER,
  axes_of_groups,
  axes_of_pairs,
  group_of_axes,
  parse_pairs,
  parse_replica_groups,
)

MESH = {"data": 2, "fsdp": 4, "expert": 2, "context": 1, "tensor": 3}
SIZES = list(MESH.values())
DEVICES = np.arange(48).reshape(SIZES)
JOINED = [axes for n in range(1, 5) for axes in itertools.combinations([axis for axis in MESH if MESH[axis] > 1], n)]


def groups_of(axes):
  """[groups, members]: the devices that differ only along `axes`."""
  kept = [index for index, axis in enumerate(MESH) if axis not in axes]
  joined = [index for index, axis in enumerate(MESH) if axis in axes]
  members = int(np.prod([SIZES[index] for index in joined]))
  return DEVICES.transpose(kept + joined).reshape(-1, members)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("replica_groups={{0,2},{1,3}}, use_global", [[0, 2], [1, 3]]),
    ("replica_groups={{0,1,2,3}}", [[0, 1, 2, 3]]),
    ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_0'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [[3, 2], [1, 0]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
  ],
)
def test_forms(text, expected):
  assert sorted(parse_replica_groups(text, 4).tolist()) == sorted(expected)


@pytest.mark.parametrize("axes", JOINED)
def test_iota_form_of_every_mesh_axis(axes):
  """The transposed iota by which XLA writes the groups of mesh axes, and back to their names."""
  kept = [index for index, axis in enumerate(MESH) if axis not in axes]
  joined = [index for index, axis in enumerate(MESH) if axis in axes]
  expected = groups_of(axes)
  written = (
    f"[{expected.shape[0]},{expected.shape[1]}]<=[{','.join(map(str, SIZES))}]T({','.join(map(str, kept + joined))})"
  )
  groups = parse_replica_groups(f"replica_groups={written}, x=1", 48)
  np.testing.assert_array_equal(groups, expected)
  assert axes_of_groups(groups, MESH) == "+".join(axes)
  assert group_of_axes(axes, MESH) == tuple(expected[0])
  shuffled = np.random.default_rng(0).permuted(groups, axis=1)
  assert axes_of_groups(shuffled, MESH) == "+".join(axes)


def test_groups_that_are_no_axes():
  assert axes_of_groups(np.arange(48).reshape(-1, 8), {"fsdp": 48}) == OTHER  # a part of an axis
  odd = groups_of(("fsdp",)).copy()
  odd[0, 0], odd[1, 0] = odd[1, 0], odd[0, 0]
  assert axes_of_groups(odd, MESH) == OTHER
  corners = np.stack([DEVICES[:, 0, 0, 0, 0], DEVICES[:, 1, 1, 0, 0]], axis=1)
  assert axes_of_groups(corners, MESH) == OTHER


def test_pairs():
  ring = groups_of(("fsdp",))
  pairs = np.stack([ring, np.roll(ring, -1, axis=1)], axis=-1).reshape(-1, 2)
  text = "source_target_pairs={" + ",".join(f"{{{a},{b}}}" for a, b in pairs) + "}, metadata={}"
  np.testing.assert_array_equal(parse_pairs(text), pairs)
  assert axes_of_pairs(pairs, MESH) == "fsdp"
  assert axes_of_pairs(np.array([[0, 47]]), MESH) == "data+fsdp+expert+tensor"
  assert axes_of_pairs(np.array([[3, 3]]), MESH) == OTHER
  assert parse_pairs("channel_id=3") is None


def test_unknown_form():
  with pytest.raises(ValueError, match="unknown form"):
    parse_replica_groups("replica_groups=everyone", 4)
