"""Scores against the logits of a sequence alone, and against those of another implementation."""

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.evaluation.scoring import score
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.sharding import make_mesh


@pytest.fixture
def sequences(model):
  """Of lengths around those of the buckets; the third ends with three tokens that the model itself chose."""
  rng = np.random.default_rng(0)
  sequences = [rng.integers(0, 512, n).tolist() for n in (1, 2, 7, 32, 33, 34, 90, 200, 257)]
  for _ in range(3):
    padded = jnp.zeros((1, 16), jnp.int32).at[0, : len(sequences[2])].set(jnp.asarray(sequences[2]))
    sequences[2].append(int(np.argmax(model(padded).logits[0, len(sequences[2]) - 1])))
  return sequences


def test_scores_are_the_model_s(model, reference, sequences):
  """Of sequences of many lengths, whatever their company and the batch; also where the model would choose the token."""
  asked = [0, 1, 5, 31, 10, 33, 89, 3, 256]
  found = score(model, sequences, asked)
  for sequence, count, scored in zip(sequences, asked, found):
    assert len(scored.log_probabilities) == len(scored.greedy) == count
    if count:
      expected, greedy = reference(sequence)
      np.testing.assert_allclose(scored.log_probabilities, expected[-count:], atol=2e-5)
      assert scored.greedy.tolist() == greedy[-count:].tolist()
  assert found[2].greedy.tolist()[-3:] == [True] * 3 and not found[8].greedy.all()
  for a, b in zip(found, score(model, sequences, asked, batch_tokens=64)):
    np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=2e-5)


@pytest.mark.parametrize("name", ["dense", "dense_tied_yarn", "moe"])
def test_scores_are_those_of_the_reference_implementation(golden, name):
  """From the logits that transformers computes for the same checkpoint."""
  values = np.load(golden / name / "golden.npz")
  row = int(np.argmax(values["attention_mask"].sum(axis=1)))
  assert values["attention_mask"][row].all()
  tokens, logits = values["input_ids"][row], np.asarray(values["logits"][row], np.float64)
  expected = logits[np.arange(47), tokens[1:]] - np.log(np.sum(np.exp(logits[:-1]), axis=-1))
  (found,) = score(from_parameters(*load_parameters(golden / name, "float32")), [tokens.tolist()], [47])
  np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-4)
  assert found.log_probabilities.std() > 0.1
  assert found.greedy.tolist() == (np.argmax(logits[:-1], axis=-1) == tokens[1:]).tolist()


@pytest.mark.parametrize("mesh", [{"fsdp": 4, "tensor": 2}, {"data": 2, "context": 2, "tensor": 2}])
def test_scores_on_a_mesh(golden, model, mesh):
  sequences = [row[:n] for row, n in zip(np.random.default_rng(0).integers(0, 512, (3, 40)).tolist(), (40, 33, 12))]
  asked = [39, 20, 3]
  config, params = load_parameters(golden / "dense", "float32", make_mesh(mesh))
  alone = score(model, sequences, asked)
  for a, b in zip(score(from_parameters(config, params), sequences, asked, batch_tokens=64), alone):
    np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=2e-5)
    assert a.greedy.tolist() == b.greedy.tolist()
  assert alone[0].log_probabilities.max() < -1


def test_few_programs(model, compilations):
  """A bucket of lengths compiles once, whatever the lengths and the number of sequences."""
  rng = np.random.default_rng(1)
  of = lambda lengths: [rng.integers(0, 512, n).tolist() for n in lengths]
  score(model, of([20, 60]), [2, 2], batch_tokens=128)
  before = compilations.count
  score(model, of([3, 9, 17, 33, 40, 51, 65, 2]), [1, 2, 3, 4, 5, 6, 7, 1], batch_tokens=128)
  assert before > 0 and compilations.count == before


def test_what_cannot_be_scored(model):
  with pytest.raises(ValueError, match="sequence 1 has 3 tokens; 3 of them cannot be scored"):
    score(model, [[1, 2], [1, 2, 3]], [1, 3])
  assert score(model, [], []) == []
