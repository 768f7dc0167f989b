"""Which pieces of which documents fill a row, and the arrays of a row."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import packing
from qwen3_jax.data.packing import Packer, best_fit, bucket_of, cut, empty_batch, permute, write_row


@given(st.integers(1, 3000), st.lists(st.integers(0, 2**64 - 1), max_size=4))
def test_permute_is_a_permutation(size, key):
  assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


def test_permute_depends_on_every_part_of_the_key():
  places = np.arange(1000)
  orders = [permute(places, 1000, key) for key in ((0, 0), (0, 1), (1, 0), (0, 0, 0), (-1, 0))]
  for i, order in enumerate(orders):
    for other in orders[:i]:
      assert (order == other).mean() < 0.02


def test_permute_is_fixed_for_good():
  """Another order would make a checkpoint of an earlier version repeat and skip documents."""
  assert permute(np.arange(10), 10, (7, 3)).tolist() == [2, 9, 0, 7, 4, 6, 3, 1, 5, 8]
  assert permute(np.arange(3), 10**12, (7, 3)).tolist() == [350961065013, 539594097858, 276855240781]


def test_permute_looks_random():
  """Places of neighbours are independent, and every image is as likely as every other."""
  images = permute(np.arange(20_000), 20_000, (5,))
  assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.03
  assert abs(np.corrcoef(images, np.arange(20_000))[0, 1]) < 0.03
  counts = np.bincount([int(permute(np.asarray([3]), 10, (key,))[0]) for key in range(2000)], minlength=10)
  assert counts.min() > 150 and counts.max() < 250  # 200 +- 13


def test_cut_leaves_a_rest():
  documents, starts, lengths = cut(np.asarray([7, 8, 9, 5]), np.asarray([10, 4, 8, 0]), 4)
  assert documents.tolist() == [7, 7, 7, 8, 9, 9]
  assert starts.tolist() == [0, 4, 8, 0, 0, 4]
  assert lengths.tolist() == [4, 4, 2, 4, 4, 4]


def slow_best_fit(lengths, capacity):
  """One piece at a time, longest first, into the fullest bin that still takes it."""
  rooms = []
  for length in sorted(lengths, reverse=True):
    fitting = [i for i, room in enumerate(rooms) if room >= length]
    if fitting:
      rooms[min(fitting, key=lambda i: rooms[i])] -= length
    else:
      rooms.append(capacity - length)
  return sorted(rooms)


@settings(max_examples=200)
@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
def test_best_fit_equals_the_slow_way(case):
  capacity, lengths = case
  bins, used = best_fit(np.asarray(lengths, np.int64), capacity)
  loads = np.bincount(bins, lengths, used)
  assert loads.max(initial=0) <= capacity
  assert sorted((capacity - loads).astype(int).tolist()) == slow_best_fit(lengths, capacity)


def test_rows_are_full_for_typical_lengths():
  rng = np.random.default_rng(0)
  lengths = np.maximum(rng.lognormal(6, 1.1, 30_000).astype(np.int32), 1)  # median 400, mean 740
  for window in (512, 4096, 32_768):
    rows = Packer(lengths, window, seed=0).plan(0)
    assert rows.tokens.sum() == lengths.sum()
    assert rows.tokens.mean() / window > 0.995


def spans(rows):
  return sorted(piece for r in range(len(rows)) for piece in rows.row(r))


@pytest.mark.parametrize("pool_documents", [1000, 64, 7])
def test_an_epoch_holds_every_token_once(monkeypatch, pool_documents):
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", pool_documents)
  lengths = np.random.default_rng(0).exponential(40, 300).astype(np.int32)  # some are 0, some exceed the window
  packer = Packer(lengths, 50, seed=3)
  assert packer.pools_per_epoch == -(-300 // pool_documents)
  for epoch in range(2):
    covered = [np.zeros(length, int) for length in lengths]
    for pool in range(packer.pools_per_epoch):
      rows = packer.plan(epoch * packer.pools_per_epoch + pool)
      for r in range(len(rows)):
        assert sum(length for _, _, length in rows.row(r)) == rows.tokens[r] <= 50
        for document, start, length in rows.row(r):
          covered[document][start : start + length] += 1
    assert all((times == 1).all() for times in covered)


def test_order_is_a_function_of_seed_name_and_epoch():
  lengths = np.random.default_rng(0).integers(1, 60, 200)

  def order(pool=0, **changes):
    rows = Packer(lengths, 50, **{"seed": 3, "name": "web", **changes}).plan(pool)
    return [rows.row(r) for r in range(len(rows))]

  assert order() == order()
  for other in (order(seed=4), order(name="code"), order(pool=1)):
    assert order() != other
    assert sorted(chain.from_iterable(order())) == sorted(chain.from_iterable(other))


def test_rows_of_a_pool_come_in_random_order():
  """Packing goes from long pieces to short ones; training must not."""
  lengths = np.random.default_rng(0).integers(1, 500, 5000)
  rows = Packer(lengths, 512, seed=0).plan(0)
  longest = [max(length for _, _, length in rows.row(r)) for r in range(len(rows))]
  assert abs(np.corrcoef(longest, np.arange(len(rows)))[0, 1]) < 0.1


def test_pools_mix_the_whole_corpus(monkeypatch):
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", 100)
  rows = Packer(np.full(1000, 10), 10, seed=0).plan(0)
  documents = np.asarray([document for document, _, _ in spans(rows)])
  assert np.histogram(documents, 5, (0, 1000))[0].min() >= 8  # of 20 expected


def test_a_shared_bound_belongs_to_the_lower_bucket():
  buckets = ((16, 32, 0.75), (4, 16, 0.25))
  assert bucket_of(np.asarray([3, 4, 15, 16, 17, 32, 33]), buckets).tolist() == [-1, 1, 1, 1, 0, 0, -1]


def test_buckets_hold_their_pieces_and_no_others(monkeypatch):
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", 50)
  buckets = ((16, 32, 0.75), (4, 16, 0.25))
  lengths = np.random.default_rng(0).integers(1, 90, 200)
  pieces = list(zip(*(array.tolist() for array in cut(np.arange(200), lengths, 32))))
  for bucket, (low, high) in enumerate(((17, 32), (4, 16))):
    packer = Packer(lengths, 32, seed=0, buckets=buckets, bucket=bucket)
    found = sorted(chain.from_iterable(spans(packer.plan(pool)) for pool in range(packer.pools_per_epoch)))
    assert found == sorted(piece for piece in pieces if low <= piece[2] <= high)


def slow_row(pieces, window, documents, masks):
  """The arrays of a row, token by token."""
  rows = {name: [0] * window for name in ("tokens", "targets", "loss_weights", "positions", "segment_ids")}
  at = 0
  for segment, (document, start, length) in enumerate(pieces):
    for offset in range(length):
      here = start + offset
      rows["tokens"][at] = documents[document][here]
      rows["positions"][at] = offset
      rows["segment_ids"][at] = segment + 1
      if here + 1 < len(documents[document]):
        rows["targets"][at] = documents[document][here + 1]
        rows["loss_weights"][at] = 1 if masks[document] is None else int(masks[document][here + 1])
      at += 1
  return rows


def test_arrays_of_a_row():
  rng = np.random.default_rng(0)
  documents = [rng.integers(1, 1000, length) for length in (70, 5, 1, 32, 33, 12, 2)]
  masks = [None, None, None, rng.integers(0, 2, 32), rng.integers(0, 2, 33), None, None]

  def read(document, start, length):
    mask = masks[document]
    part = slice(start, start + length)
    return documents[document][part], None if mask is None else mask[part].astype(bool)

  rows = Packer(np.asarray([len(document) for document in documents]), 32, seed=0).plan(0)
  for r in range(len(rows)):
    batch = empty_batch(2, 32)
    write_row(batch, 1, rows.row(r), read)
    for name, expected in slow_row(rows.row(r), 32, documents, masks).items():
      array = getattr(batch, name)
      assert array.dtype == (np.float32 if name == "loss_weights" else np.int32)
      assert array[1].tolist() == expected, name
      assert not array[0].any()


def test_targets_at_the_ends_of_pieces():
  """By hand: a document of 5 cut at 3 continues; the last token of a document has no target."""
  document = np.asarray([10, 11, 12, 13, 14])
  batch = empty_batch(1, 8)
  pieces = [(0, 0, 3), (0, 3, 2)]
  write_row(batch, 0, pieces, lambda _, start, length: (document[start : start + length], None))
  assert batch.tokens[0].tolist() == [10, 11, 12, 13, 14, 0, 0, 0]
  assert batch.targets[0].tolist() == [11, 12, 13, 14, 0, 0, 0, 0]
  assert batch.loss_weights[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
  assert batch.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
  assert batch.segment_ids[0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
