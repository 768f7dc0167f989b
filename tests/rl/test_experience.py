"""Trajectories as rows: what counts, where it stands, and their file."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen3_jax.rl.experience import experience, load_batch, save_batch, take_rows
from qwen3_jax.rollout.multi_turn import Trajectory


def trajectory(prompt, tokens, sampled, experts=None) -> Trajectory:
  numbers = [-0.1 * (i + 1) for i in range(len(tokens))]
  return Trajectory(
    prompt=prompt,
    tokens=tokens,
    log_probabilities=numbers,
    sampling_log_probabilities=[2 * x for x in numbers],
    sampled=sampled,
    experts=experts or [None] * len(tokens),
  )


TRAJECTORIES = [
  trajectory([5, 6, 7], [8, 9, 10, 11], [True, False, True, True]),  # the second was inserted
  trajectory([1], [2], [True]),
  trajectory([1, 2], [3, 4], [True, True]),  # not trained on
  Trajectory(),  # did not start
]


def test_rows():
  batch = experience(TRAJECTORIES, [2.0, -1.0, 3.0, 4.0], [True, True, False, True], length=8)
  rollout = batch.rollout
  assert batch.tokens[0].tolist() == [5, 6, 7, 8, 9, 10, 0, 0]
  assert batch.targets[0].tolist() == [6, 7, 8, 9, 10, 11, 0, 0]
  assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
  assert batch.segment_ids[0].tolist() == [1] * 6 + [0] * 2
  # Position t predicts the token after it: those of 8, 10 and 11 count.
  assert batch.loss_weights[0].tolist() == [0, 0, 1, 0, 1, 1, 0, 0]
  np.testing.assert_allclose(rollout.advantages[0], [0, 0, 2, 0, 2, 2, 0, 0])
  np.testing.assert_allclose(rollout.shares[0], np.array([0, 0, 1, 0, 1, 1, 0, 0]) / 3)
  np.testing.assert_allclose(rollout.sampling_log_probabilities[0], [0, 0, -0.2, 0, -0.6, -0.8, 0, 0], rtol=1e-6)
  assert batch.loss_weights[1].tolist() == [1] + [0] * 7 and rollout.advantages[1, 0] == -1
  assert batch.segment_ids[2].any() and not batch.loss_weights[2].any() and not rollout.shares[2].any()
  assert not batch.segment_ids[3].any()
  with pytest.raises(ValueError, match="7 tokens does not fit rows of 5"):
    experience(TRAJECTORIES, [0.0] * 4, [True] * 4, length=5)


def test_experts_stand_with_the_tokens_that_chose_them():
  chosen = [np.full((2, 3), i, np.int16) for i in range(2)]
  batch = experience([trajectory([1, 2, 3], [4, 5], [True, True], chosen)], [1.0], [True], 6, experts=(2, 3))
  experts = batch.rollout.experts
  assert experts.shape == (1, 6, 2, 3)
  assert (experts[0, 2] == 0).all() and (experts[0, 3] == 1).all() and (experts[0, [0, 1, 4, 5]] == -1).all()


@pytest.mark.parametrize("old", [True, False])
def test_file(tmp_path, old):
  batch = experience(TRAJECTORIES, [2.0, -1.0, 3.0, 4.0], [True] * 4, length=8)
  if old:
    rollout = dataclasses.replace(batch.rollout, old_log_probabilities=batch.rollout.advantages + 1)
    batch = dataclasses.replace(batch, rollout=rollout)
  save_batch(tmp_path / "a" / "0.npz", batch)
  read = load_batch(tmp_path / "a" / "0.npz")
  assert jax.tree.structure(read) == jax.tree.structure(batch)
  jax.tree.map(np.testing.assert_array_equal, read, batch)
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["0.npz"]
  assert take_rows(batch, np.array([1, 0])).tokens[1].tolist() == batch.tokens[0].tolist()
