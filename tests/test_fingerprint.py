"""Fingerprints: every change is seen, sharding is not, and host and device agree."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen3_jax import fingerprint
from qwen3_jax.fingerprint import fingerprints
from qwen3_jax.sharding import make_mesh


def definition(x) -> int:
  """The sum of MurmurHash3's finalizer over the elements, in Python's integers."""
  x = np.asarray(x)
  word = 2**32
  total = 0
  for place, bits in enumerate(x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}").tolist()):
    h = (bits ^ 0x9E3779B9) * (2 * place + 1) % word
    h = (h ^ (h >> 16)) * 0x85EBCA6B % word
    h = (h ^ (h >> 13)) * 0xC2B2AE35 % word
    total += h ^ (h >> 16)
  return total % word


def random_bits(shape, dtype, seed=0):
  """Any bits that the type can hold, NaNs with payloads among them."""
  rng = np.random.default_rng(seed)
  if dtype == "bool":
    return rng.integers(0, 2, shape).astype(bool)
  dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
  return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def on_device(tree):
  leaves = [fingerprint._plain(x) for x in jax.tree.leaves(tree)]
  return np.asarray(fingerprint._compiled(None)(leaves)).tolist()


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float16", "float32", "int32", "uint32"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3, 4)])
def test_equals_the_definition_on_host_and_device(dtype, shape):
  x = jnp.asarray(random_bits(shape, dtype))
  assert fingerprints(x) == on_device(x) == [definition(x)]


@pytest.mark.parametrize(
  "axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "tensor": 2}]
)
@pytest.mark.parametrize("spec", [P(), P("fsdp"), P("tensor", "fsdp"), P(None, ("fsdp", "tensor")), P("data")])
def test_does_not_depend_on_sharding(axes, spec):
  x = random_bits((16, 24), "float32")
  sharded = jax.device_put(x, NamedSharding(make_mesh(axes), spec))
  assert fingerprints(sharded) == fingerprints(sharded) == on_device(sharded) == [definition(x)]


def test_blocks_of_large_arrays(monkeypatch):
  x = jnp.asarray(random_bits((13, 5, 2), "float32"))
  for block in (1, 10, 35, 1000):
    monkeypatch.setattr(fingerprint, "_BLOCK", block)
    assert fingerprints(x) == [definition(x)]


def test_order_of_leaves_and_of_elements_counts():
  x = jnp.asarray(random_bits((8, 8), "int32"))
  y = jnp.asarray(random_bits((4,), "int32", seed=1))
  assert fingerprints({"a": x, "b": y}) == fingerprints(x) + fingerprints(y)
  assert len({fingerprints(z)[0] for z in (x, x.T, x[::-1], jnp.roll(x, 1, axis=1))}) == 4
  assert fingerprints({}) == []


def test_every_single_bit_is_seen():
  x = random_bits((16, 8), "uint32")
  seen = {definition(x)}
  for index in np.ndindex(x.shape):
    for bit in (0, 15, 31):
      changed = x.copy()
      changed[index] ^= np.uint32(1 << bit)
      seen.add(fingerprints(jnp.asarray(changed))[0])
  assert len(seen) == 1 + 3 * x.size


def test_typed_keys():
  key = jax.random.key(3)
  assert fingerprints(key) == fingerprints(jax.random.key_data(key)) == on_device(key)
