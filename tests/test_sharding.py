"""Mesh and rules."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from qwen3_jax.models.config import MODELS, model_config
from qwen3_jax.sharding import make_mesh, parameter_shardings, partition_spec


def test_mesh_fills_one_open_axis():
  assert dict(make_mesh({"fsdp": -1, "tensor": 2}).shape)["fsdp"] == 4


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ({"fsdp": 3}, "does not fit 8 devices"),
    ({"fsdp": -1, "data": -1}, "at most one may be -1"),
    ({"fsdp": 0}, "must be positive"),
    ({"fsdp": -1, "tensor": 3}, "does not fit 8 devices"),
    ({"model": 2}, "unknown axes model"),
  ],
)
def test_impossible_meshes_are_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(shape)


def test_rules():
  assert partition_spec(("layers", "embed", "heads", "head_dim")) == P(
    None, ("fsdp", "expert", "context"), "tensor", None
  )
  assert partition_spec(("batch", "length")) == P(("data", "fsdp", "expert"), "context")
  with pytest.raises(ValueError, match="'tensor' would split both 'heads' and 'mlp'"):
    partition_spec(("heads", "mlp"))
  with pytest.raises(ValueError, match="Unknown logical axis 'head'"):
    partition_spec(("head",))


@pytest.mark.parametrize("name", MODELS)
def test_large_parameters_are_split_over_all_of_fsdp_and_tensor(name):
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  config = model_config(name)
  shardings = jax.tree.leaves(parameter_shardings(config, mesh))
  from qwen3_jax.models.transformer import abstract_parameters

  for sharding, x in zip(shardings, jax.tree.leaves(abstract_parameters(config))):
    if x.size > 2**20 and x.ndim > 2 and x.shape[-1] != config.num_experts:
      assert np.prod(sharding.shard_shape(x.shape)) * 8 == x.size, x.shape
