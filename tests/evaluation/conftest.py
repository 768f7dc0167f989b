"""What the tests of evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.loading import load_parameters
from qwen3_jax.models.transformer import Transformer, from_parameters
from tests.rollout.conftest import compilations, tokenizer  # noqa: F401

Reference = Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]]
_LONGEST = 257  # tokens: the context of the golden models, and one to predict


@pytest.fixture(scope="session")
def model(golden) -> Transformer:
  """512 ids, a context of 256 tokens."""
  return from_parameters(*load_parameters(golden / "dense", "float32"))


@pytest.fixture(scope="session")
def reference(model) -> Reference:
  """Log-probability of every token of a sequence after the first, and whether it is the most likely.

  From all logits of the sequence alone, in float64.
  """
  forward = jax.jit(lambda tokens: model(tokens).logits)

  def of(tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    n = len(tokens) - 1
    padded = jnp.zeros((1, _LONGEST - 1), jnp.int32).at[0, :n].set(jnp.asarray(tokens[:-1], jnp.int32))
    logits = np.asarray(forward(padded)[0, :n], np.float64)
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    return logits[np.arange(n), tokens[1:]] - log_z, np.argmax(logits, axis=-1) == tokens[1:]

  return of
