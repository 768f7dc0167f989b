"""A matrix times tokens, against float64: many tokens of a row, and one of each as in decoding."""

import jax
import numpy as np
import pytest

from qwen3_jax.models import linear as module
from qwen3_jax.models.linear import linear


@pytest.mark.parametrize("tokens, large", [(1, 0), (1, 2**15), (5, 0)])
@pytest.mark.parametrize(
  "inputs, outputs, names", [((12,), (3, 4), ("embed", "heads", None)), ((3, 4), (12,), ("heads", "embed"))]
)
def test_product_and_gradients_are_those_of_float64(tokens, large, inputs, outputs, names, monkeypatch):
  monkeypatch.setattr(module, "_LARGE", large)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6, tokens, *inputs)).astype(np.float32)
  matrix = rng.normal(size=(12, *outputs)).astype(np.float32)
  gradient = rng.normal(size=(6, tokens, *outputs)).astype(np.float32)
  y, pull_back = jax.vjp(jax.jit(lambda x, matrix: linear(x, matrix, names)), x, matrix)
  of_x, of_matrix = pull_back(gradient)
  flat = [a.astype(np.float64).reshape(-1, 12) for a in (x, gradient)]
  square = matrix.astype(np.float64).reshape(12, 12)
  np.testing.assert_allclose(y, (flat[0] @ square).reshape(y.shape), rtol=0, atol=3e-6)
  np.testing.assert_allclose(of_x, (flat[1] @ square.T).reshape(x.shape), rtol=0, atol=3e-6)
  np.testing.assert_allclose(of_matrix, (flat[0].T @ flat[1]).reshape(matrix.shape), rtol=0, atol=1e-5)
