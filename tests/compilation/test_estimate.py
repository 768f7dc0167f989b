"""Estimates, fixes, the ideal network and the candidates of a sweep: no compiler needed."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from experiments import dense_0_6b, moe_30b_a3b
from qwen3_jax.compilation.estimate import estimate
from qwen3_jax.compilation.fixes import fixes
from qwen3_jax.compilation.ideal_network import ideal_collectives
from qwen3_jax.compilation.selection import validate_selection
from qwen3_jax.compilation.sweep import candidates, mesh_shapes
from qwen3_jax.compilation.topologies import Topology, parse_topology
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages.pretrain import make_program


@pytest.fixture
def topology(monkeypatch):
  """v5e:2x4, with the test's CPU devices in the place of the compiler's."""
  places = np.array([[x, y, 0, 0] for y in range(4) for x in range(2)])
  monkeypatch.setattr(Topology, "devices", lambda self: jax.devices()[: self.device_count])
  monkeypatch.setattr(
    "qwen3_jax.compilation.collectives.Network.__init__",
    lambda self, topology, devices: self.__dict__.update(_topology=topology, _places=places),
  )
  return parse_topology("v5e:2x4")


def sent(program, mesh):
  totals = {}
  for item in ideal_collectives(program, mesh, program.arguments(mesh)["parameters"]):
    totals[item.kind, item.axes] = totals.get((item.kind, item.axes), 0.0) + item.network_bytes * item.count
  return totals


def test_ideal_network_of_a_dense_model():
  config = dense_0_6b.get_config("stage=s1")
  config.stages.s1.update(batch_size=64, micro_batches=2)
  program = make_program(config, "s1")
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  totals = sent(program, mesh)
  D, H, N, K, F, V, depth = 1024, 128, 16, 8, 3072, 151_936, 28
  over_tensor = depth * (D * H * 2 * (N + K) + 3 * D * F) + V * D  # tied: one table
  whole = depth * (2 * H + 2 * D) + D
  split = over_tensor / 2 + depth * 2 * D + D  # of the norms, those of size D are split over fsdp
  gathered = 2 * 2 * 2 * split * 3 / 4  # two passes, two micro-batches, bfloat16
  assert totals["all-gather", "fsdp"] == pytest.approx(gathered)
  assert totals["reduce-scatter", "fsdp"] == pytest.approx(gathered / 2)
  tokens = 64 * 4096 / 4
  assert totals["all-reduce", "tensor"] == pytest.approx(depth * 4 * tokens * D * 2)  # 2 (n - 1) / n = 1
  assert whole - split != 0  # the norms over heads are replicated
  assert totals["all-reduce", "fsdp"] == pytest.approx(2 * depth * 2 * H * 2 * 3 / 4)


def test_ideal_network_of_experts_and_context():
  config = moe_30b_a3b.get_config("stage=s1")
  config.stages.s1.update(batch_size=16, micro_batches=1)
  config.model.num_layers = 3
  program = make_program(config, "s1")
  mesh = make_mesh({"expert": 4, "context": 2})
  totals = sent(program, mesh)
  D, F, H, K, tokens = 2048, 768, 128, 4, 16 * 4096 / 8
  # Cheaper than to send the 8 choices of a token.
  assert totals["all-gather", "expert"] == pytest.approx(3 * 2 * tokens * D * 2 * 3)
  assert totals["reduce-scatter", "expert"] == totals["all-gather", "expert"]
  few = sent(dataclasses.replace(program, model=program.model.replace(num_experts_per_token=2)), mesh)
  assert few["all-to-all", "expert"] == pytest.approx(3 * 4 * tokens * 2 * D * 2 * 3 / 4)
  keys_and_values, experts = (tokens * 2) * 2 * K * H, 128 / 4 * 3 * D * F
  assert totals["all-gather", "context"] == pytest.approx(3 * 2 * (keys_and_values + experts) * 2 / 2)
  assert totals["reduce-scatter", "context"] == pytest.approx(totals["all-gather", "context"] / 2)


def test_estimate_counts_the_state_exactly(topology):
  config = dense_0_6b.get_config("stage=s1")
  program = make_program(config, "s1")
  mesh = make_mesh({"fsdp": 8})
  arguments = program.arguments(mesh)
  found = estimate(program, mesh, topology, arguments)
  assert found.state == pytest.approx(12 * 596_049_920 / 8, rel=1e-3)
  saved = {}
  for policy in ("full", "dots", "none"):
    remat = dataclasses.replace(program, model=program.model.replace(remat=policy))
    saved[policy] = estimate(remat, mesh, topology, arguments).saved
  assert saved["full"] == 28 * (2048 * 4096 // 8 // 8) * 1024 * 2  # of 8 micro-batches on 8 devices, each layer's input
  assert saved["full"] < saved["dots"] < saved["none"]


def test_fixes_rank_what_is_enough_first(topology):
  config = dense_0_6b.get_config("stage=s1")
  config.model.remat = "none"
  mesh_shape = {"data": 1, "fsdp": 8, "expert": 1, "context": 1, "tensor": 1}
  every = fixes(config, "s1", topology, mesh_shape, excess=0)
  assert all(fix["would_fit"] and fix["bytes"] > 0 for fix in every)
  assert [fix["bytes"] for fix in every] == sorted(fix["bytes"] for fix in every)
  by_change = {fix["change"]: fix["bytes"] for fix in every}
  assert by_change["--config.model.remat=full"] > by_change["--config.model.remat=dots"]
  moments = by_change["--config.stages.s1.optimizer.moment_dtype=bfloat16"]
  assert moments == pytest.approx(2 * 2 * 596_049_920 / 8, rel=1e-3)  # two bytes of each of the two moments

  some = fixes(config, "s1", topology, mesh_shape, excess=2 * moments)
  enough = [fix["would_fit"] for fix in some]
  assert enough == sorted(enough, reverse=True) and len(set(enough)) == 2
  config.stages.s1.batch_size = 10  # of 8 devices, no micro-batch can be had
  assert not [fix for fix in fixes(config, "s1", topology, mesh_shape, 0) if "micro_batches" in fix["change"]]


def test_mesh_shapes():
  shapes = list(mesh_shapes(64, num_experts=128))
  assert all(math.prod(shape.values()) == 64 for shape in shapes)
  assert len({tuple(shape.values()) for shape in shapes}) == len(shapes)
  assert {"data": 1, "fsdp": 2, "expert": 32, "context": 1, "tensor": 1} in shapes
  assert all(shape["expert"] == 1 for shape in mesh_shapes(64, num_experts=0))
  assert all(shape["data"] == 2 for shape in mesh_shapes(64, 0, num_slices=2))


def test_candidates_are_valid(topology):
  config = moe_30b_a3b.get_config("tiny,stage=s1")
  found = list(candidates(config, "s1", topology))
  assert {candidate.config.model.remat for candidate in found} >= {"none", "full"}
  assert {candidate.config.mesh.expert for candidate in found} == {1, 2, 4}  # a micro-batch has 4 sequences
  for candidate in found:
    shards = math.prod(candidate.config.mesh[axis] for axis in ("data", "fsdp", "expert"))
    assert candidate.config.stages.s1.batch_size // candidate.config.stages.s1.micro_batches % shards == 0


def test_only_what_is_compiled_must_fit_the_mesh():
  config = dense_0_6b.get_config("tiny")
  config.stages.s2.batch_size = 6
  with pytest.raises(ConfigError) as caught:
    validate_selection(config, 8)
  assert any(problem.startswith("stages.s2.batch_size=6") for problem in caught.value.problems)
  config.stage = "s1"
  config.stages.s1.micro_batches = 1
  validate_selection(config, 8)
  config.stages.s1.micro_batches = 3
  with pytest.raises(ConfigError, match=r"stages\.s1\.batch_size"):
    validate_selection(config, 8)
