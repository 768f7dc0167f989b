"""Gradients through carriers equal gradients through casts, to the bit, and are stacked in the cast's dtype."""

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.models.layer_gradients import cast, with_cast_gradients

L, D = 3, 8
DTYPES = {"matrix": jnp.bfloat16, "router": jnp.float32}


def case():
  rng = np.random.default_rng(0)
  parameters = {name: jnp.asarray(rng.normal(size=(L, D, D)) / D, jnp.float32) for name in DTYPES}
  return parameters, jnp.asarray(rng.normal(size=(2, D)), jnp.bfloat16), jnp.asarray(0.5, jnp.float32)


def layer(x, parameters, shift):
  y = jnp.tanh(x @ parameters["matrix"])
  return y + (y.astype(jnp.float32) @ parameters["router"] + shift).astype(x.dtype)


def plain(parameters, x, shift):
  step = lambda x, slices: (layer(x, {n: s.astype(DTYPES[n]) for n, s in slices.items()}, shift), jnp.sum(x))
  return jax.lax.scan(step, x, parameters)


def with_carriers(parameters, x, shift):
  def scan(parameters, carriers, x, shift):
    step = lambda x, slices: (layer(x, jax.tree.map(cast, *slices), shift), jnp.sum(x))
    return jax.lax.scan(step, x, (parameters, carriers))

  return with_cast_gradients(scan, DTYPES)(parameters, x, shift)


def loss(run):
  def of_parameters(parameters, x, shift):
    y, sums = run(parameters, x, shift)
    return jnp.sum(jnp.sin(y.astype(jnp.float32))) + jnp.sum(jnp.cos(sums.astype(jnp.float32)))

  return of_parameters


def test_equal_to_the_bit():
  ours, wanted = (jax.jit(jax.value_and_grad(loss(run), argnums=(0, 1)))(*case()) for run in (with_carriers, plain))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    assert float(jnp.max(jnp.abs(b.astype(jnp.float32)))) > 1e-3


def stacked(run) -> list[str]:
  """Dtypes of the gradients that scans stack."""
  text = jax.make_jaxpr(jax.grad(loss(run)))(*case())
  found = []
  for equation in jax.tree.leaves(list(text.eqns), is_leaf=lambda x: hasattr(x, "primitive")):
    if equation.primitive.name == "scan" and equation.params["reverse"]:
      found += [str(v.aval.dtype) for v in equation.outvars if v.aval.shape == (L, D, D)]
  return sorted(found)


def test_stacked_in_the_dtype_of_the_cast():
  assert stacked(with_carriers) == ["bfloat16", "float32"]
  assert stacked(plain) == ["float32", "float32"]
