"""Programs compiled by the TPU compiler: what is counted in them equals what was written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen3_jax.compilation.buffer_lifetimes import aliased_outputs, simulated_peak
from qwen3_jax.compilation.collectives import Network
from qwen3_jax.compilation.compiler import CompilerError, Lowered, compile_lowered
from qwen3_jax.compilation.hlo import parse_module
from qwen3_jax.compilation.memory import device_peak, memory_categories, memory_statistics, shard_shapes
from qwen3_jax.compilation.program_cost import program_cost
from qwen3_jax.compilation.report import summarize
from qwen3_jax.compilation.roofline import roofline
from qwen3_jax.compilation.topologies import parse_topology, prepare_environment
from qwen3_jax.sharding import make_mesh

pytest.importorskip("libtpu")

L, B, D, F = 6, 2048, 1024, 4096
STACK = 2  # bytes of bfloat16


@pytest.fixture(scope="module")
def mesh():
  prepare_environment()
  axis_types = (jax.sharding.AxisType.Auto,) * 2
  devices = parse_topology("v5p:2x2x1").devices()
  return jax.make_mesh((2, 2), ("fsdp", "tensor"), devices=devices, axis_types=axis_types)


def abstract(mesh, shape, *spec):
  return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))


@pytest.fixture(scope="module")
def trained(mesh):
  """A step on L layers of relu(x @ a) @ b: rows split over fsdp, a's columns over tensor, layers rematerialised."""

  def layer(x, weights):
    a, b = weights
    y = jax.nn.relu(x @ a) @ b
    return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P("fsdp", None))), None

  def step(weights, x):
    def loss(weights):
      y, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
      return jnp.sum(y.astype(jnp.float32) ** 2)

    value, gradients = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value

  weights = (abstract(mesh, (L, D, F), None, "fsdp", "tensor"), abstract(mesh, (L, F, D), None, "tensor", "fsdp"))
  x = abstract(mesh, (B, D), "fsdp", None)
  with jax.set_mesh(mesh):
    compiled = jax.jit(step, donate_argnums=0).lower(weights, x).compile()
  return compiled, {"parameters": weights, "batch": x}


@pytest.fixture(scope="module")
def cost(trained, mesh):
  return program_cost(parse_module(trained[0].as_text()), mesh.shape)


def test_flops(cost):
  matmul = 2 * B * D * F / 4
  # Two forward, four backward; the first is done again, the second is not needed for any gradient.
  assert cost.flops == L * (2 + 4 + 1) * matmul
  assert cost.rematted_flops == L * matmul
  assert not cost.data_dependent_loops and not cost.uncounted_kernels


def test_collectives(cost):
  totals = {}
  for item in cost.collectives:
    if item.loops:
      assert item.loops == (L,)
      key = (item.kind, item.axes, item.dtype)
      totals[key] = totals.get(key, 0) + item.network_bytes * item.count
  weights = L * (D * F // 2) * STACK  # one of the two, gathered over fsdp, on one device
  rows = L * (B // 2) * D * STACK
  assert totals == {
    ("all-gather", "fsdp", "bf16"): 4 * weights / 2,  # both weights for the forward and the backward pass
    ("reduce-scatter", "fsdp", "bf16"): 2 * weights / 2,
    ("all-reduce", "tensor", "bf16"): 2 * rows,  # 2 (n - 1) / n = 1; y forward, the gradient of x backward
  }
  once = [item for item in cost.collectives if not item.loops]
  assert [(item.kind, item.axes, item.payload) for item in once] == [("all-reduce", "fsdp", 4)]  # the loss


def test_summary_and_roofline(cost, mesh):
  topology = parse_topology("v5p:2x2x1")
  network = Network(topology, list(mesh.devices.flat))
  bounds = roofline(cost, topology.chip, network)
  entries = summarize(cost.collectives, bounds.waits, network, num_layers=L)
  assert [entry["per_layer"] for entry in entries] == [True, True, True, False]
  assert sum(entry["bytes"] for entry in entries) == sum(x.network_bytes * x.count for x in cost.collectives)
  assert bounds.compute == pytest.approx(cost.flops / 459e12)
  assert bounds.dcn == 0 and bounds.ici == pytest.approx(sum(entry["seconds"] for entry in entries))
  # Each axis of this mesh is one side of the square: one link of 100 GB/s each way.
  assert bounds.network == pytest.approx(sum(x.network_bytes * x.count for x in cost.collectives) / 100e9)
  times = {"compute": bounds.compute, "memory": bounds.memory, "network": bounds.network}
  assert bounds.overlapped == times[bounds.binding] == max(times.values())
  assert bounds.serial == pytest.approx(sum(times.values()))


def test_memory_traffic_is_of_the_right_size(cost):
  """Gathered weights written and read in both passes, gradients written, read and scattered, the update, and less for
  activations than reading the whole stacks in every layer would add."""
  weights = 2 * L * (D * F // 4) * STACK
  gathered = 2 * weights
  least = 2 * 2 * gathered + 2 * gathered + weights + 3 * weights
  assert least < cost.hbm_bytes < least + 4 * L * weights


def test_memory_categories(trained, mesh):
  compiled, arguments = trained
  text = compiled.as_text()
  statistics = memory_statistics(compiled)
  replay = simulated_peak(parse_module(text), aliased_outputs(text))
  assert device_peak(statistics, replay) == statistics.peak
  assert statistics.argument + replay.bytes == pytest.approx(statistics.peak, rel=0.1)
  shapes = shard_shapes(arguments["parameters"])
  categories = memory_categories(replay, statistics.peak, arguments, shapes, L)
  weights = 2 * L * (D * F // 4) * STACK
  rows = (B // 2) * D * STACK
  assert sum(categories.values()) == statistics.peak
  assert categories["parameters"] == weights
  assert categories["batch"] == rows
  assert categories["gradients"] == weights
  assert categories["saved_activations"] == L * rows  # each layer's input
  assert abs(categories["other"]) < 0.1 * statistics.peak
  assert max(buffer.array.bytes for buffer in replay.buffers) == max(weights // 2, L * rows)


def test_peak_of_a_program_that_uses_the_hosts_memory(mesh):
  """The compiler counts the layer inputs that wait there; the device holds few of them at once."""
  layers, rows = 24, 32 * B
  layer_input = rows // 2 * D * STACK

  def step(weights, x):
    def layer(x, weight):
      return jnp.tanh(checkpoint_name(x, "input") @ weight), None

    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=["input"],
      offload_src="device",
      offload_dst="pinned_host",
    )
    return jax.grad(lambda x: jnp.sum(jax.lax.scan(jax.checkpoint(layer, policy=policy), x, weights)[0] ** 2))(x)

  compiled = jax.jit(step).lower(abstract(mesh, (layers, D, D)), abstract(mesh, (rows, D), "fsdp")).compile()
  statistics = memory_statistics(compiled)
  text = compiled.as_text()
  peak = device_peak(statistics, simulated_peak(parse_module(text), aliased_outputs(text)))
  assert statistics.host == layers * layer_input
  assert statistics.peak > statistics.argument + statistics.host
  assert statistics.argument + 3 * layer_input < peak < statistics.argument + 8 * layer_input


def test_nested_loops_and_shard_map(mesh):
  """Collectives written by hand: an all-to-all in a loop of 3 within one of 5, and a ring of permutes."""

  def body(x):
    def outer(carry, _):
      def inner(carry, _):
        return jax.lax.all_to_all(carry, "fsdp", split_axis=0, concat_axis=1, tiled=True).reshape(carry.shape), None

      carry, _ = jax.lax.scan(inner, carry, None, length=3)
      return jax.lax.ppermute(carry, "tensor", [(0, 1), (1, 0)]), None

    carry, _ = jax.lax.scan(outer, x, None, length=5)
    return carry

  x = abstract(mesh, (2048, 1024), "fsdp", "tensor")
  step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("fsdp", "tensor"), out_specs=P("fsdp", "tensor")))
  found = program_cost(parse_module(step.lower(x).compile().as_text()), mesh.shape).collectives
  totals = {}
  for item in found:
    key = (item.kind, item.axes, int(np.prod(item.loops)))
    totals[key] = totals.get(key, 0) + item.network_bytes
  shard = 1024 * 512 * STACK
  assert totals == {("all-to-all", "fsdp", 15): shard / 2, ("collective-permute", "tensor", 5): shard}


def test_gradients_are_summed_between_slices():
  """Two slices joined along data: the shards of one gradient go over the data-centre network, the rest within."""
  topology = parse_topology("v5p:2x2x1", num_slices=2)
  mesh = make_mesh({"data": 2, "fsdp": 4}, topology.devices())

  def step(w, x):
    return w - jax.grad(lambda w: jnp.sum(jnp.square(x @ w).astype(jnp.float32)))(w)

  w, x = abstract(mesh, (D, F), "fsdp", None), abstract(mesh, (B, D), ("data", "fsdp"), None)
  text = jax.jit(step, out_shardings=w.sharding).lower(w, x).compile().as_text()
  found = program_cost(parse_module(text), mesh.shape, num_slices=2).collectives
  network = Network(topology, list(mesh.devices.flat))
  between = [item for item in found if network.crosses_slices(item)]
  assert [(item.kind, item.axes, item.group, item.payload) for item in between] == [
    ("all-reduce", "data", (0, 4), D * F // 4 * STACK)
  ]
  assert network.seconds(between[0]) == pytest.approx(D * F // 4 * STACK / 6.25e9)
  assert {item.axes for item in found if item not in between} == {"fsdp"}


def test_a_kernel_without_room_on_the_chip_is_another_error():
  """Not reported as a lack of HBM."""
  prepare_environment()
  shape = jax.ShapeDtypeStruct((64 * 2**20,), jnp.float32)

  def copy(source, target):
    target[...] = source[...]

  on_chip = pl.BlockSpec(memory_space=pltpu.VMEM)
  kernel = pl.pallas_call(copy, shape, in_specs=[on_chip], out_specs=on_chip)
  alone = jax.sharding.Mesh(np.array(parse_topology("v5p:2x2x1").devices()[:1]), ("one",))
  step = jax.shard_map(kernel, mesh=alone, in_specs=P(), out_specs=P(), check_vma=False)
  x = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(alone, P()))
  with jax.set_mesh(alone):
    lowered = jax.jit(step).lower(x)
  with pytest.raises(CompilerError, match=r"(?s)the TPU compiler refuses the program: .*vmem"):
    compile_lowered(Lowered(lowered, 0.0, ""), argument_bytes=0)
