"""Gradients of the layers' parameters in the dtype that the layers compute in, until all are there.

A layer casts its parameters to the dtype of its activations, and the gradient of a cast has the dtype of what was cast:
under a scan the gradients of all layers then lie in float32, though each is a bfloat16 number. Here the scan is
differentiated with respect to carriers, arrays of the compute dtype that stand where the cast parameters are, and the
gradients are cast after the scan, where the optimizer's arithmetic reads them: the same numbers in half the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def cast(parameter: jax.Array, carrier: jax.Array) -> jax.Array:
  """`parameter` in the dtype of its carrier, which gets the gradient."""
  return parameter.astype(carrier.dtype)


cast.defvjp(lambda parameter, carrier: (cast(parameter, carrier), None), lambda _, gradient: (None, gradient))


def with_cast_gradients(scan: Callable[..., Any], dtypes: Any) -> Callable[..., Any]:
  """`scan(parameters, carriers, x, *rest)` as a function of (parameters, x, *rest), differentiable in the first two.

  Args:
    scan: `cast`s what it uses of `parameters`, with `carriers` of the same tree and shapes.
    dtypes: that each of the parameters is cast to.
  """

  def carriers_of(parameters):
    return jax.tree.map(lambda parameter, dtype: jnp.zeros(parameter.shape, dtype), parameters, dtypes)

  @jax.custom_vjp
  def run(parameters, x, *rest):
    return scan(parameters, carriers_of(parameters), x, *rest)

  def forward(parameters, x, *rest):
    of_carriers = lambda carriers, x: scan(parameters, carriers, x, *rest)
    y, pullback = jax.vjp(of_carriers, carriers_of(parameters), x)
    examples = jax.tree.map(lambda parameter: jnp.zeros((), parameter.dtype), parameters)
    return y, (pullback, examples, rest)

  def backward(residuals, gradient):
    pullback, examples, rest = residuals
    to_carriers, to_x = pullback(gradient)
    to_parameters = jax.tree.map(lambda gradient, example: gradient.astype(example.dtype), to_carriers, examples)
    return to_parameters, to_x, *(None for _ in rest)

  run.defvjp(forward, backward)
  return run
