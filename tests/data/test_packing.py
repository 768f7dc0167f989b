"""Which pieces of which documents fill a row, and the arrays of a row."""

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data import packing
from qwen3_jax.data.packing import Bucket, Packer, best_fit, cut, empty_batch, key_of, permute, write_row


def packer_of(lengths, window, *, seed=0, name="", buckets=None):
  """A packer of `buckets`, (low, high, share) each; by default of everything."""
  key = key_of(seed, name)
  buckets = buckets or [(1, window, 1.0)]
  return Packer(
    [Bucket(lengths, window, low, high, (*key, low)) for low, high, _ in buckets], [share for *_, share in buckets], key
  )


def pools_of(packer):
  """Pools without end: where they start, their rows, where they end."""
  start = packer.start
  while True:
    rows, end = packer.plan(start)
    yield start, rows, end
    start = end


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
    packer = packer_of(lengths, window)
    rows, _ = packer.plan(packer.start)
    assert rows.tokens.sum() == lengths.sum()
    assert rows.tokens.mean() / window > 0.995


def spans(rows):
  return sorted(piece for r in range(len(rows)) for piece in rows.row(r))


@pytest.mark.parametrize("pool_documents", [1000, 64, 7])
def test_an_epoch_holds_every_token_once(monkeypatch, pool_documents):
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", pool_documents)
  lengths = np.random.default_rng(0).exponential(40, 300).astype(np.int32)  # some are 0, some exceed the window
  nonempty = np.count_nonzero(lengths)
  packer = packer_of(lengths, 50, seed=3)
  epochs = {0: [], 1: []}
  for (start,), rows, (end,) in pools_of(packer):
    if start.epoch == 2:
      break
    epochs[start.epoch].append(rows)
    assert end.place == min(start.place + pool_documents, nonempty) % nonempty
    assert end.tokens - start.tokens == rows.tokens.sum()
  for pools in epochs.values():
    assert len(pools) == -(-nonempty // pool_documents)
    covered = [np.zeros(length, int) for length in lengths]
    for rows in pools:
      for r in range(len(rows)):
        assert sum(length for _, _, length in rows.row(r)) == rows.tokens[r] <= 50
        for document, start, length in rows.row(r):
          covered[document][start : start + length] += 1
    assert all((times == 1).all() for times in covered)


def test_order_is_a_function_of_seed_name_and_epoch():
  lengths = np.random.default_rng(0).integers(1, 60, 200)

  def order(epoch=0, **changes):
    pools = pools_of(packer_of(lengths, 50, **{"seed": 3, "name": "web", **changes}))
    _, rows, _ = next(islice(pools, epoch, None))
    return [rows.row(r) for r in range(len(rows))]

  assert order() == order()
  for other in (order(seed=4), order(name="code"), order(epoch=1)):
    assert order() != other
    assert sorted(chain.from_iterable(order())) == sorted(chain.from_iterable(other))


def test_rows_of_a_pool_come_in_random_order():
  """Packing goes from long pieces to short ones; training must not."""
  lengths = np.random.default_rng(0).integers(1, 500, 5000)
  packer = packer_of(lengths, 512)
  rows, _ = packer.plan(packer.start)
  longest = [max(length for _, _, length in rows.row(r)) for r in range(len(rows))]
  assert abs(np.corrcoef(longest, np.arange(len(rows)))[0, 1]) < 0.1


def test_pools_mix_the_whole_corpus(monkeypatch):
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", 100)
  packer = packer_of(np.full(1000, 10), 10)
  rows, _ = packer.plan(packer.start)
  documents = np.asarray([document for document, _, _ in spans(rows)])
  assert np.histogram(documents, 5, (0, 1000))[0].min() >= 8  # of 20 expected


@pytest.mark.parametrize("pool_documents", [1000, 50, 7])
@pytest.mark.parametrize("share", [0.75, 0.3])
def test_every_epoch_of_a_bucket_holds_its_pieces_once(monkeypatch, pool_documents, share):
  """And no others; buckets go through their documents at different paces."""
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", pool_documents)
  buckets = ((17, 32, share), (4, 16, 1 - share))
  lengths = np.random.default_rng(0).integers(1, 90, 200)
  pieces = list(zip(*(array.tolist() for array in cut(np.arange(200), lengths, 32))))
  given = [{}, {}]  # bucket -> epoch -> pieces
  for start, rows, end in pools_of(packer_of(lengths, 32, buckets=buckets)):
    if min(at.epoch for at in start) == 3:
      break
    for i, (low, high, _) in enumerate(buckets):
      of_bucket = [piece for piece in spans(rows) if low <= piece[2] <= high]
      given[i].setdefault(start[i].epoch, []).extend(of_bucket)
      assert end[i].tokens - start[i].tokens == sum(length for _, _, length in of_bucket)
    assert len(rows) and rows.tokens.sum() == sum(at.tokens for at in end) - sum(at.tokens for at in start)
  assert max(given[0]) != max(given[1])
  for (low, high, _), epochs in zip(buckets, given):
    expected = sorted(piece for piece in pieces if low <= piece[2] <= high)
    for epoch in list(epochs)[:-1]:  # the last one may be under way
      assert sorted(epochs[epoch]) == expected


@pytest.mark.parametrize("pool_documents", [1000, 50, 7])
def test_pools_keep_the_shares_of_the_buckets(monkeypatch, pool_documents):
  """After every pool, whatever the pool's size: each bucket is within its longest document of its share."""
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", pool_documents)
  shares = (0.6, 0.3, 0.1)
  buckets = [(low, high, share) for (low, high), share in zip(((33, 64), (17, 32), (4, 16)), shares)]
  lengths = np.random.default_rng(0).integers(1, 200, 300)
  for _, _, end in islice(pools_of(packer_of(lengths, 64, buckets=buckets)), 200):
    tokens = np.asarray([at.tokens for at in end])
    assert np.abs(tokens - tokens.sum() * np.asarray(shares)).max() <= 192  # of 199, three windows are in a bucket


def test_short_pieces_fill_what_long_ones_leave():
  """S3's buckets on log-normal lengths; each bucket alone would fill 85% and 97%."""
  window, buckets = 32_768, ((16_385, 32_768, 0.75), (4096, 16_384, 0.25))
  lengths = np.random.default_rng(0).lognormal(9.2, 1.0, 20_000).astype(np.int32)  # median 9,900, mean 16,300
  pools = [rows for _, rows, _ in islice(pools_of(packer_of(lengths, window, buckets=buckets)), 3)]
  assert sum(rows.tokens.sum() for rows in pools) / sum(map(len, pools)) / window > 0.98
  # Where no document reaches the window, every long piece has a row of its own: nothing can be fuller than this.
  pools = [rows for _, rows, _ in islice(pools_of(packer_of(lengths[lengths < window], window, buckets=buckets)), 3)]
  tokens, rows = sum(rows.tokens.sum() for rows in pools), sum(map(len, pools))
  assert rows - sum(np.count_nonzero(pool.lengths > 16_384) for pool in pools) <= len(pools)
  assert tokens / rows / window > 0.84


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

  packer = packer_of(np.asarray([len(document) for document in documents]), 32)
  rows, _ = packer.plan(packer.start)
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
