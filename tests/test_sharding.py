"""Mesh and rules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from qwen3_jax.models.config import MODELS, model_config
from qwen3_jax.models.transformer import abstract_parameters, from_parameters
from qwen3_jax.sharding import array_spec, batch_sharding, make_mesh, parameter_shardings, partition_spec
from tests.models.test_transformer import SMALL_MOE


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


def test_an_array_is_split_by_axes_of_several_devices_that_divide_it():
  names, shape = ("embed", "heads", "head_dim"), (64, 6, 16)
  spec = lambda **axes: array_spec(names, shape, make_mesh(axes))
  assert spec(data=8) == P(None, None, None)
  assert spec(fsdp=8) == P("fsdp", None, None)
  assert spec(fsdp=2, context=2, tensor=2) == P(("fsdp", "context"), "tensor", None)
  assert spec(fsdp=2, tensor=4) == P("fsdp", None, None)  # six heads


def test_nothing_is_exchanged_over_an_axis_of_one_device():
  """XLA for CPUs copies the arrays of such collectives."""
  config = SMALL_MOE
  mesh = make_mesh({"fsdp": 8})

  def loss(params, tokens):
    return jnp.sum(from_parameters(config, params).hidden(tokens).final)

  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  params = jax.tree.map(place, abstract_parameters(config), parameter_shardings(config, mesh))
  tokens = jax.ShapeDtypeStruct((8, 16), np.int32, sharding=batch_sharding(mesh))
  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss)).lower(params, tokens).compile().as_text()
  groups = re.findall(r"replica_groups=(\S+), ", text)
  assert groups and not [group for group in groups if group.startswith(("{{0},", "[8,1]"))]


@pytest.mark.parametrize("name", MODELS)
def test_large_parameters_are_split_over_all_of_fsdp_and_tensor(name):
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  config = model_config(name)
  shardings = jax.tree.leaves(parameter_shardings(config, mesh))
  for sharding, x in zip(shardings, jax.tree.leaves(abstract_parameters(config))):
    if x.size > 2**20 and x.ndim > 2 and x.shape[-1] != config.num_experts:
      assert np.prod(sharding.shard_shape(x.shape)) * 8 == x.size, x.shape
