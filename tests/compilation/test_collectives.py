"""Bytes and times of collectives, by hand."""

import types

import pytest

from qwen3_jax.compilation.chips import CHIPS
from qwen3_jax.compilation.collectives import Collective, Network, read_collective, ring_bytes
from qwen3_jax.compilation.hlo import parse_module
from qwen3_jax.compilation.program_cost import program_cost
from qwen3_jax.compilation.roofline import roofline
from qwen3_jax.compilation.topologies import parse_topology

MIB = 2**20
MESH = {"fsdp": 2, "tensor": 2}
MODULE = """HloModule jit_step, entry_computation_layout={()->()}

%scattered (input: bf16[1024,1024]) -> bf16[512,1024] {
  %input = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %summed = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,2},{1,3}}, to_apply=%add
  %where = u32[]{:T(128)} constant(0)
  ROOT %slice = bf16[512,1024]{1,0:T(8,128)(2,1)} dynamic-slice(%summed, %where, %where), dynamic_slice_sizes={512,1024}
}

ENTRY %main (x: bf16[1024,1024], y: f32[256,128]) -> f32[256,128] {
  %x = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[256,128]{1,0:T(8,128)} parameter(1)
  %gathered = bf16[2048,1024]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %reduced = (bf16[1024,1024]{1,0}, f32[256,128]{1,0}) all-reduce(%x, %y), replica_groups=[2,2]<=[4], to_apply=%add
  %alone = f32[256,128]{1,0} all-reduce(%y), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %sent = (f32[256,128], f32[256,128]) collective-permute-start(%y), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %got = f32[256,128]{1,0} collective-permute-done(%sent)
  %exchanged = f32[256,128]{1,0} all-to-all(%got), replica_groups=[1,4]<=[4], dimensions={0}
  %n = s32[2]{0} constant({1, 1})
  %ragged = f32[256,128]{1,0} ragged-all-to-all(%exchanged, %y, %n, %n, %n, %n), replica_groups={{0,2},{1,3}}
  %half = bf16[512,1024]{1,0} fusion(%x), kind=kCustom, calls=%scattered
  ROOT %out = f32[256,128]{1,0} copy(%ragged)
}
"""


@pytest.fixture(scope="module")
def found():
  module = parse_module(MODULE)
  pairs = ((x, computation) for computation in module.computations.values() for x in computation)
  return {x.name: read_collective(x, computation, MESH) for x, computation in pairs}


def test_reading(found):
  expected = {
    "summed": ("reduce-scatter", "fsdp", 2 * MIB, (0, 2)),
    "gathered": ("all-gather", "fsdp", 4 * MIB, (0, 2)),
    "reduced": ("all-reduce", "tensor", 2 * MIB + MIB // 8, (0, 1)),
    "sent": ("collective-permute", "tensor", MIB // 8, (0, 1)),
    "exchanged": ("all-to-all", "fsdp+tensor", MIB // 8, (0, 1, 2, 3)),
    "ragged": ("ragged-all-to-all", "fsdp", MIB // 8, (0, 2)),
  }
  read = {name: (x.kind, x.axes, x.payload, x.group) for name, x in found.items() if x is not None}
  assert read == expected  # neither `alone`, a group of one, nor the end of what was started


@pytest.mark.parametrize(
  ("kind", "share"),
  [
    ("all-gather", 7 / 8),
    ("reduce-scatter", 7 / 8),
    ("all-reduce", 14 / 8),
    ("all-to-all", 7 / 8),
    ("ragged-all-to-all", 7 / 8),
    ("collective-permute", 1.0),
  ],
)
def test_ring_formulas(kind, share):
  assert ring_bytes(kind, 8000, 8) == pytest.approx(8000 * share)
  assert ring_bytes(kind, 8000, 1) == 0


def devices(shape, per_chip=1, slices=1):
  """In the order of jax's ids: x fastest, cores within a chip before that."""
  return [
    types.SimpleNamespace(coords=[x, y, z], core_on_chip=core, slice_index=index)
    for index in range(slices)
    for z in range(shape[2])
    for y in range(shape[1])
    for x in range(shape[0])
    for core in range(per_chip)
  ]


def seconds(network, kind, group, payload=10**9):
  return network.seconds(Collective(kind, "bf16", "fsdp", tuple(group), payload))


def test_times_on_a_torus():
  network = Network(parse_topology("v5p:4x4x8"), devices((4, 4, 8)))
  link = CHIPS["v5p"].link_bandwidth
  assert link == 100e9  # 1,200 GB/s both ways over 6 links
  ring, plane = range(4), range(16)
  assert seconds(network, "all-gather", ring) == pytest.approx(0.75e9 / (2 * link))
  assert seconds(network, "all-gather", plane) == pytest.approx(15e9 / 16 / (4 * link))
  assert seconds(network, "all-gather", range(2)) == pytest.approx(0.5e9 / link)  # half a ring: one way
  # Data of an all-to-all crosses a quarter of each ring on average.
  assert seconds(network, "all-to-all", plane) == pytest.approx(15e9 / 16 * 2 / (4 * link))


def test_a_small_slice_has_no_rings():
  network = Network(parse_topology("v5p:2x2x1"), devices((2, 2, 1)))
  assert seconds(network, "all-reduce", range(4)) == pytest.approx(1.5e9 / (2 * 100e9))
  flat = Network(parse_topology("v6e:8x16"), devices((8, 16, 1)))
  assert seconds(flat, "all-gather", range(8)) == pytest.approx(7e9 / 8 / 100e9)
  assert seconds(flat, "all-gather", range(0, 128, 8)) == pytest.approx(15e9 / 16 / 200e9)


def test_devices_of_one_chip_share_its_links():
  network = Network(parse_topology("tpu7x:4x4x4"), devices((4, 4, 4), per_chip=2))
  assert seconds(network, "all-gather", range(0, 8, 2)) == pytest.approx(0.75e9 / (200e9 / 2))
  assert seconds(network, "all-gather", range(2)) == pytest.approx(0.5e9 / 600e9)


def test_slices_are_joined_by_the_data_centre_network():
  network = Network(parse_topology("v5p:2x2x1", num_slices=2), devices((2, 2, 1), slices=2))
  across = Collective("all-reduce", "f32", "data", (0, 4), 10**9)
  assert network.crosses_slices(across)
  assert network.seconds(across) == pytest.approx(1e9 / 6.25e9)
  assert not network.crosses_slices(Collective("all-reduce", "f32", "fsdp", (0, 1), 10**9))


SCHEDULE = """HloModule jit_step, is_scheduled=true, entry_computation_layout={()->()}

%gather (p: bf16[512,1024]) -> bf16[1024,1024] {
  %p = bf16[512,1024]{1,0} parameter(0)
  ROOT %gathered = bf16[1024,1024]{1,0} all-gather(%p), replica_groups=[2,2]<=[4], dimensions={0}
}

ENTRY %main (x: bf16[512,1024], y: bf16[1024,1024]) -> bf16[1024,1024] {
  %x = bf16[512,1024]{1,0} parameter(0)
  %y = bf16[1024,1024]{1,0} parameter(1)
  %alone = bf16[1024,1024]{1,0} all-gather(%x), replica_groups=[2,2]<=[4], dimensions={0}
  %begin = ((bf16[512,1024]), bf16[1024,1024]) call-start(%x), async_execution_thread="sparsecore", to_apply=%gather
  %other = ((bf16[512,1024]), bf16[1024,1024]) call-start(%x), async_execution_thread="sparsecore", to_apply=%gather
  %product = bf16[1024,1024]{1,0} dot(%y, %alone), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %on = ((bf16[512,1024]), bf16[1024,1024]) call-update(%begin)
  %end = bf16[1024,1024]{1,0} call-done(%on)
  %power = bf16[1024,1024]{1,0} dot(%product, %end), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %other_end = bf16[1024,1024]{1,0} call-done(%other)
  ROOT %out = bf16[1024,1024]{1,0} dot(%power, %other_end), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_what_runs_beside_a_collective_is_not_waited_for():
  topology = parse_topology("v5p:2x2x1")
  places = [types.SimpleNamespace(coords=(x, y, 0)) for x in range(2) for y in range(2)]
  network = Network(topology, places)
  cost = program_cost(parse_module(SCHEDULE), MESH)
  each = MIB / 100e9  # half of the output over one link
  product = max(2 * 1024**3 / 459e12, 3 * 2 * MIB / 2765e9)
  assert 0 < product < each
  bounds = roofline(cost, topology.chip, network)
  assert bounds.network == pytest.approx(3 * each)
  # The second has a product beside it; the third comes over the network after it, beside the other product.
  assert bounds.waits == pytest.approx((each, each - product, each - product))
  assert bounds.waiting == pytest.approx(3 * each - 2 * product)
  assert bounds.scheduled == pytest.approx(max(bounds.compute, bounds.memory) + bounds.waiting)
