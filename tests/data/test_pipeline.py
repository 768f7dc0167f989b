"""Batches: interleaving, resume, elasticity, validation."""

import json
import threading
from itertools import chain, islice

import numpy as np
import pytest
from prepared_corpora import Document, random_documents, write_corpus

from qwen3_jax.data import packing
from qwen3_jax.data.pipeline import PREFETCHED_BATCHES, train_batches, validation_batches
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.records import DataError, shard_path

FIELDS = ("tokens", "targets", "loss_weights", "positions", "segment_ids")
SETTINGS = {"sequence_length": 64, "batch_size": 8, "seed": 1}


@pytest.fixture(autouse=True)
def small_pools(monkeypatch):
  """So that short runs cross pools and epochs."""
  monkeypatch.setattr(packing, "POOL_DOCUMENTS", 100)


@pytest.fixture(scope="module")
def documents():
  """Corpora whose tokens are all different."""
  return {
    "web": random_documents(330, 40, seed=0),
    "code": random_documents(60, 90, seed=1, domain="code", first_token=10**6),
    "books": random_documents(15, 400, seed=2, domain="books", first_token=2 * 10**6),
  }


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, documents):
  shares = {"web": 0.6, "code": 0.3, "books": 0.1}
  folder = tmp_path_factory.mktemp("corpora")
  return {name: (PreparedCorpus.open(write_corpus(folder / name, documents[name])), shares[name]) for name in documents}


@pytest.fixture
def batches_of():
  """train_batches, closed at the end of the test."""
  iterators = []

  def make(mixture, **changes):
    iterators.append(train_batches(mixture, **{**SETTINGS, **changes}))
    return iterators[-1]

  yield make
  for iterator in iterators:
    iterator.close()


def assert_same(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    for field in FIELDS:
      assert np.array_equal(getattr(batch, field), getattr(other, field)), field


def through_json(state):
  return json.loads(json.dumps(state))


def test_the_same_seed_gives_the_same_batches(mixture, batches_of):
  first = list(islice(batches_of(mixture), 60))
  assert all(getattr(first[0], field).shape == (8, 64) for field in FIELDS)
  assert_same(first, list(islice(batches_of(dict(reversed(mixture.items()))), 60)))
  other = next(batches_of(mixture, seed=2))
  assert not np.array_equal(first[0].tokens, other.tokens)


def test_the_order_does_not_depend_on_the_batch_size(mixture, batches_of):
  eights = np.concatenate([batch.tokens for batch in islice(batches_of(mixture), 6)])
  twelves = np.concatenate([batch.tokens for batch in islice(batches_of(mixture, batch_size=12), 4)])
  assert np.array_equal(eights, twelves)


BUCKETS = ((33, 64, 0.75), (8, 33, 0.25))


@pytest.mark.parametrize("buckets", [(), BUCKETS])
def test_resume_after_every_batch(mixture, batches_of, buckets):
  """Across pools and epochs; the state counts what was returned, not what was read ahead."""
  iterator = batches_of(mixture, length_buckets=buckets)
  states, batches = [iterator.get_state()], []
  for _ in range(170):
    batches.append(next(iterator))
    states.append(through_json(iterator.get_state()))
  assert all(epoch > 2 for epoch, _, _ in states[-1]["position"]["code"]["start"]), states[-1]
  assert len(json.dumps(states[-1]["position"])) < 300
  resumed = batches_of(mixture, length_buckets=buckets)
  for k in range(168):
    resumed.set_state(states[k])
    assert resumed.get_state() == states[k]
    assert_same([next(resumed), next(resumed)], batches[k : k + 2])
    assert through_json(resumed.get_state()) == states[k + 2]
  fresh = batches_of(mixture, length_buckets=buckets)
  fresh.set_state(states[93])
  assert_same(list(islice(fresh, 77)), batches[93:])


def test_resume_reads_nothing_again(mixture, batches_of, monkeypatch):
  iterator = batches_of(mixture)
  for _ in range(50):
    next(iterator)
  state = iterator.get_state()
  iterator.close()
  read, planned = [], []
  original_read, original_plan = PreparedCorpus.read, packing.Packer.plan
  monkeypatch.setattr(PreparedCorpus, "read", lambda *a: (read.append(0), original_read(*a))[1])
  monkeypatch.setattr(packing.Packer, "plan", lambda *a: (planned.append(0), original_plan(*a))[1])
  resumed = batches_of(mixture)
  resumed.set_state(state)
  next(resumed)
  resumed.close()
  assert len(read) <= (PREFETCHED_BATCHES + 3) * 8 * 10  # about 3 documents a row, and what is read ahead
  assert len(planned) < 20


@pytest.mark.parametrize("buckets", [(), BUCKETS])
def test_elastic(mixture, batches_of, buckets):
  """One process, then two, then four: together they see what one process sees, in order; states agree."""
  whole = list(islice(batches_of(mixture, length_buckets=buckets), 30))
  state, seen = None, []
  for count in (1, 2, 4, 8, 1):
    rows = np.arange(8).reshape(count, 8 // count)
    iterators = [batches_of(mixture, length_buckets=buckets, rows=rows[p].tolist()) for p in range(count)]
    for iterator in iterators:
      if state is not None:
        iterator.set_state(state)
    for _ in range(6):
      parts = [next(iterator) for iterator in iterators]
      assert all(part.tokens.shape == (8 // count, 64) for part in parts)
      seen.append({field: np.concatenate([getattr(part, field) for part in parts]) for field in FIELDS})
    states = [through_json(iterator.get_state()) for iterator in iterators]
    assert all(other == states[0] for other in states)
    state = states[0]
  for batch, together in zip(whole, seen, strict=True):
    for field in FIELDS:
      assert np.array_equal(getattr(batch, field), together[field])


def test_an_epoch_sees_every_token_once(mixture, documents, batches_of):
  """Every document is put together again from the batches by its (unique) tokens."""
  corpus, _ = mixture["web"]
  iterator = batches_of({"web": (corpus, 1.0)}, batch_size=1)
  for epoch in range(2):
    seen, targets = [], []
    while sum(map(len, seen)) < corpus.tokens_total:
      batch = next(iterator)
      seen.append(batch.tokens[batch.segment_ids > 0])
      targets.append(batch.targets[batch.loss_weights > 0])
    expected = np.concatenate([document.tokens for document in documents["web"]])
    assert np.array_equal(np.sort(np.concatenate(seen)), expected), epoch
    expected = np.concatenate([document.tokens[1:] for document in documents["web"]])
    assert np.array_equal(np.sort(np.concatenate(targets)), expected), epoch


def test_batches_are_consistent(mixture, batches_of):
  """Tokens of a document are consecutive numbers here, so every target is its token plus one."""
  for batch in islice(batches_of(mixture), 40):
    predicted, used = batch.loss_weights > 0, batch.segment_ids > 0
    assert np.array_equal(batch.targets[predicted], batch.tokens[predicted] + 1)
    assert not (predicted & ~used).any() and not batch.tokens[~used].any()
    for row in range(8):
      segments = batch.segment_ids[row]
      count = segments.max()
      assert np.array_equal(np.unique(segments[segments > 0]), np.arange(1, count + 1))
      for segment in range(1, count + 1):
        place = np.flatnonzero(segments == segment)
        assert np.array_equal(place, np.arange(place[0], place[0] + len(place)))
        assert np.array_equal(batch.positions[row, place], np.arange(len(place)))
        assert np.array_equal(np.diff(batch.tokens[row, place]), np.ones(len(place) - 1))


def tokens_by_corpus(batches):
  tokens = np.concatenate([batch.tokens[batch.segment_ids > 0] for batch in batches])
  return np.bincount(tokens // 10**6, minlength=3)  # web, code, books


def test_shares_are_shares_of_tokens(mixture, batches_of):
  batches = list(islice(batches_of(mixture), 150))
  counts = tokens_by_corpus(batches)
  assert np.abs(counts / counts.sum() - [0.6, 0.3, 0.1]).max() < 0.01
  for steps in (3, 10, 40):  # from the start on, within a row or so
    counts = tokens_by_corpus(batches[:steps])
    assert np.abs(counts - counts.sum() * np.asarray([0.6, 0.3, 0.1])).max() <= 1.5 * 64


def test_length_buckets(mixture, batches_of):
  """Shares of tokens by bucket, and by corpus as without buckets; 33 belongs to the lower bucket."""
  tokens, mixed = np.zeros(65), 0
  batches = list(islice(batches_of(mixture, length_buckets=BUCKETS), 150))
  for segments in chain.from_iterable(batch.segment_ids for batch in batches):
    lengths = np.bincount(segments)[1:]
    np.add.at(tokens, lengths, lengths)
    mixed += lengths.min() <= 33 < lengths.max()
  assert not tokens[:8].any() and tokens[8] and tokens[33]
  assert abs(tokens[34:].sum() / tokens.sum() - 0.75) < 0.01
  assert mixed > 150
  counts = tokens_by_corpus(batches)
  assert np.abs(counts / counts.sum() - [0.6, 0.3, 0.1]).max() < 0.01


def test_the_order_of_buckets_does_not_matter(mixture, batches_of):
  batches = [list(islice(batches_of(mixture, length_buckets=b), 5)) for b in (BUCKETS, BUCKETS[::-1])]
  assert_same(*batches)


def test_a_corpus_without_pieces_in_a_bucket_leaves_it_to_the_others(tmp_path, batches_of):
  def corpus(name, length, first):
    documents = [Document(np.arange(length) + first + i * length) for i in range(40)]
    return PreparedCorpus.open(write_corpus(tmp_path / name, documents))

  mixture = {"long": (corpus("long", 60, 0), 0.5), "short": (corpus("short", 20, 10**6), 0.5)}
  buckets = ((33, 64, 0.75), (8, 32, 0.25))
  counts = tokens_by_corpus(list(islice(batches_of(mixture, length_buckets=buckets), 50)))
  assert abs(counts[0] / counts.sum() - 0.75) < 0.01
  tiny = {**mixture, "tiny": (corpus("tiny", 4, 2 * 10**6), 0.1)}
  with pytest.raises(DataError, match=r"mixture\.tiny: no document has a piece"):
    batches_of(tiny, length_buckets=buckets)
  with pytest.raises(DataError, match="no document of short has a piece of 33 to 64 tokens at sequence_length 64"):
    batches_of({"short": mixture["short"]}, length_buckets=buckets)


def test_loss_masks_reach_the_weights(tmp_path, batches_of):
  documents = [Document(np.arange(30 * i, 30 * i + 30), loss_mask=np.arange(30) % 3 == 0) for i in range(40)]
  corpus = PreparedCorpus.open(write_corpus(tmp_path / "corpus", documents))
  for batch in islice(batches_of({"corpus": (corpus, 1)}, sequence_length=20), 10):
    assert np.array_equal(
      batch.loss_weights > 0, (batch.targets % 30 % 3 == 0) & (batch.tokens % 30 < 29) & (batch.segment_ids > 0)
    )


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"seed": 2}, "seed was 1, now 2"),
    ({"sequence_length": 65}, "sequence_length was 64, now 65"),
    ({"length_buckets": ((4, 64, 1.0),)}, r"length_buckets was \[\], now"),
    (
      {"corpora": {"web": 0.5, "code": 0.5}},
      r"corpora\.books was .*, now absent; corpora\.code\.share was 0\.3, now 0\.5",
    ),
  ],
)
def test_a_state_of_another_run_is_refused(mixture, batches_of, changes, message):
  state = through_json(batches_of(mixture).get_state())
  shares = changes.get("corpora", {name: share for name, (_, share) in mixture.items()})
  changed = {name: (mixture[name][0], share) for name, share in shares.items()}
  other = batches_of(changed, **{key: value for key, value in changes.items() if key != "corpora"})
  with pytest.raises(DataError, match=message):
    other.set_state(state)


def test_a_state_over_another_corpus_is_refused(mixture, tmp_path, documents, batches_of):
  other = PreparedCorpus.open(write_corpus(tmp_path / "web", documents["web"][:-1]))
  state = batches_of(mixture).get_state()
  with pytest.raises(DataError, match=r"corpora\.web\.documents was 330, now 329; corpora\.web\.tokens was"):
    batches_of({**mixture, "web": (other, 0.6)}).set_state(state)
  with pytest.raises(DataError, match="seed was absent"):
    batches_of(mixture).set_state({})


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"batch_size": 0}, "batch_size: 0"),
    ({"rows": [0, 8]}, r"rows: \[0, 8\]; expected different numbers from 0 to 7, in order"),
    ({"rows": [1, 0]}, r"rows: \[1, 0\]; expected different numbers"),
    ({"sequence_length": 1}, "sequence_length: 1; expected at least 2"),
    ({"length_buckets": ((9, 8, 1.0),)}, r"length_buckets: \(9, 8, 1\.0\)"),
    ({"length_buckets": ((8, 20, 0.5), (19, 64, 0.5))}, r"length_buckets: 8\.\.20 and 19\.\.64 overlap"),
  ],
)
def test_impossible_requests(mixture, batches_of, changes, message):
  with pytest.raises(DataError, match=message):
    batches_of(mixture, **changes)


def test_impossible_mixtures(mixture, tmp_path, batches_of):
  with pytest.raises(DataError, match="mixture: no corpus"):
    batches_of({})
  with pytest.raises(DataError, match=r"mixture\.web: share 0; expected more than 0"):
    batches_of({"web": (mixture["web"][0], 0)})
  empty = PreparedCorpus.open(write_corpus(tmp_path / "empty", [Document(np.arange(4))]), "validation")
  with pytest.raises(DataError, match=r"mixture\.nothing: .*validation holds no tokens"):
    batches_of({"nothing": (empty, 1)})


def test_a_damaged_shard_stops_the_iterator(tmp_path, documents, batches_of):
  folder = write_corpus(tmp_path / "web", documents["web"])
  shard = shard_path(folder, "train", 1)
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 0xFF
  shard.write_bytes(content)
  with pytest.raises(DataError, match=r"shard-00001\.array_record: .*damaged") as caught:
    for _ in islice(batches_of({"web": (PreparedCorpus.open(folder), 1)}), 60):
      pass
  assert "\n" not in str(caught.value)


def test_close_ends_every_thread(mixture):
  before = set(threading.enumerate())
  iterator = train_batches(mixture, **SETTINGS)
  next(iterator)
  assert set(threading.enumerate()) - before
  iterator.close()
  iterator.close()
  assert not set(threading.enumerate()) - before


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
  folder = tmp_path_factory.mktemp("validation")
  big = random_documents(150, 40, seed=3, domain="big")
  shared = random_documents(5, 40, seed=4, domain="shared", first_token=10**6)
  more = random_documents(6, 40, seed=5, domain="shared", first_token=2 * 10**6)
  lonely = [Document(np.asarray([7]), "one token")]
  train = [Document(np.arange(4), "only in training")]
  corpora = {
    "a": write_corpus(folder / "a", train, big + shared),
    "b": write_corpus(folder / "b", train, more + lonely),
  }
  corpora["c"] = write_corpus(folder / "c", train)
  opened = {name: PreparedCorpus.open(path, "validation") for name, path in corpora.items()}
  return opened, {"big": big, "shared": shared + more}


def test_validation_covers_every_domain(validation):
  corpora, by_domain = validation
  batches = validation_batches(corpora, sequence_length=64, batch_size=4, num_batches=1000)
  assert list(batches) == ["big", "shared"]  # a document of one token holds nothing to predict
  for domain, documents in by_domain.items():
    if domain == "big":  # one pool of 100 documents of it
      continue
    seen = np.concatenate([batch.tokens[batch.segment_ids > 0] for batch in batches[domain]])
    assert np.array_equal(np.sort(seen), np.sort(np.concatenate([document.tokens for document in documents])))
  padding = np.concatenate([batch.segment_ids for batch in batches["shared"]]).max(axis=1) == 0
  weights = np.concatenate([batch.loss_weights for batch in batches["shared"]])
  assert padding.any() and not weights[padding].any()


def test_validation_is_fixed_and_bounded(validation):
  corpora, _ = validation
  settings = {"sequence_length": 64, "batch_size": 4, "num_batches": 3}
  batches = validation_batches(corpora, **settings)
  again = validation_batches(dict(reversed(corpora.items())), **settings)
  assert {domain: len(found) for domain, found in batches.items()} == {"big": 3, "shared": 3}
  parts = [validation_batches(corpora, **settings, rows=rows) for rows in ([0, 2], [1, 3])]
  for domain in batches:
    assert_same(batches[domain], again[domain])
    for batch, first, second in zip(batches[domain], parts[0][domain], parts[1][domain], strict=True):
      for field in FIELDS:
        together = np.stack([getattr(first, field), getattr(second, field)], axis=1).reshape(4, 64)
        assert np.array_equal(getattr(batch, field), together)


def test_validation_without_documents(validation):
  corpora, _ = validation
  assert validation_batches({"c": corpora["c"]}, sequence_length=64, batch_size=4, num_batches=3) == {}
  assert validation_batches({}, sequence_length=64, batch_size=4, num_batches=3) == {}
  assert list(chain(*validation_batches(corpora, sequence_length=64, batch_size=4, num_batches=0).values())) == []
