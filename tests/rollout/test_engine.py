"""The engine on real checkpoints: its tokens and log-probabilities are the model's, whatever else runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.loading import load_parameters
from qwen3_jax.models.transformer import from_parameters, initialize
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.request import Request
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.sharding import make_mesh

GREEDY = SamplingParams(temperature=0)
LENGTH = 128
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(golden):
  """(config, parameters) of a golden checkpoint in float32, and what greedy decoding gives."""

  def load(name):
    config, params = load_parameters(golden / name, "float32")
    prompt, answer = np.split(np.load(golden / name / "golden.npz")["greedy_ids"][0], [16])
    return config, params, prompt.tolist(), answer.tolist()

  return load


def make_engine(config, params, mesh=None, **settings) -> Engine:
  defaults = {"slots": 4, "max_length": LENGTH, "page_size": 16, "prefill_length": 32}
  engine = Engine(config, EngineSettings(**defaults | settings), mesh=mesh)
  engine.update(params)
  return engine


def varied_requests(V: int, count: int, longest_prompt: int = 70) -> list[Request]:
  """Of many lengths, some longer than what is prefilled at a time; each with a seed of its own."""
  rng = np.random.default_rng(0)
  samplings = (SamplingParams(), GREEDY, SamplingParams(temperature=0.7, top_k=40, top_p=0.9, presence_penalty=0.5))
  return [
    Request(
      rng.integers(0, V, rng.integers(1, longest_prompt)).tolist(),
      int(rng.integers(1, 40)),
      samplings[i % len(samplings)],
      seed=i,
    )
    for i in range(count)
  ]


def tokens_of(results) -> list[list[int]]:
  return [result.tokens for result in results]


@functools.partial(jax.jit, static_argnums=0)
def training_forward(config, params, tokens, positions, segment_ids, experts=None):
  """The final hidden states and the log-probabilities of what comes next, of one row."""
  model = from_parameters(config, params)
  hidden = model.hidden(tokens[None], positions[None], segment_ids[None], experts=experts).final
  return hidden[0], jax.nn.log_softmax(model.logits(hidden)[0], axis=-1)


def in_a_row(tokens: list[int]) -> list[jax.Array]:
  """Tokens, positions and segments of a row that holds another document too, and padding to one length for all."""
  room = LENGTH + 8 - len(tokens) - 3
  row, segments = [*tokens, 1, 2, 3, *[0] * room], [1] * len(tokens) + [2, 2, 2] + [0] * room
  positions = [*range(len(tokens)), 0, 1, 2, *[0] * room]
  return [jnp.asarray(x, jnp.int32) for x in (row, positions, segments)]


def training_log_probabilities(config, params, tokens: list[int]) -> np.ndarray:
  """Of every token after the first, by the training forward."""
  log_probabilities = np.asarray(training_forward(config, params, *in_a_row(tokens))[1])[: len(tokens) - 1]
  return np.take_along_axis(log_probabilities, np.asarray(tokens[1:])[:, None], axis=1)[:, 0]


def check_log_probabilities(config, params, request: Request, result) -> None:
  tokens = [*request.prompt, *result.tokens]
  expected = training_log_probabilities(config, params, tokens)[len(request.prompt) - 1 :]
  np.testing.assert_allclose(result.log_probabilities, expected, atol=TOLERANCE, rtol=0)
  assert np.std(expected) > 100 * TOLERANCE or len(expected) < 5  # zeros would not pass


@pytest.mark.parametrize("cache", ["dense", "paged"])
@pytest.mark.parametrize("name", ["dense", "dense_tied_yarn", "moe"])
def test_greedy_is_the_reference(checkpoint, name, cache):
  config, params, prompt, answer = checkpoint(name)
  engine = make_engine(config, params, cache=cache)
  (result,) = engine.run([Request(prompt, len(answer), GREEDY)])
  assert result.tokens == answer
  assert result.finish_reason == "length"


@pytest.mark.parametrize(
  ("name", "others"),
  [
    ("dense", ({"slots": 64}, {"mesh": True, "slots": 3, "cache": "paged"})),
    ("moe", ({"slots": 64, "cache": "paged"}, {"mesh": True, "slots": 3})),
  ],
)
def test_a_result_does_not_depend_on_what_else_runs(checkpoint, name, others):
  config, params, _, _ = checkpoint(name)
  requests = varied_requests(config.vocab_size, 14)
  engine = make_engine(config, params)
  together = engine.run(requests)
  alone = [engine.run([request])[0] for request in requests]
  order = np.random.default_rng(1).permutation(len(requests))
  shuffled = engine.run([requests[i] for i in order])
  assert tokens_of(alone) == tokens_of(together)
  assert tokens_of(shuffled) == [together[i].tokens for i in order]
  for request, result in zip(requests, together):
    check_log_probabilities(config, params, request, result)

  for changes in others:
    mesh = make_mesh({"data": 2, "expert": 2, "tensor": 2}) if "mesh" in changes else None
    others = make_engine(config, params, **changes | {"mesh": mesh}).run(requests)
    assert tokens_of(others) == tokens_of(together), changes
    for a, b in zip(others, together):
      np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=1e-5, rtol=0)
      np.testing.assert_allclose(a.sampling_log_probabilities, b.sampling_log_probabilities, atol=1e-5, rtol=0)


def test_sampling_log_probabilities(checkpoint):
  """Equal the model's where nothing is filtered, are higher where something is, and 0 when greedy."""
  config, params, prompt, _ = checkpoint("dense")
  samplings = (SamplingParams(), SamplingParams(top_k=5), GREEDY)
  results = make_engine(config, params).run([Request(prompt, 20, sampling, seed=3) for sampling in samplings])
  model, sampled = (
    [np.array(getattr(result, name)) for result in results]
    for name in ("log_probabilities", "sampling_log_probabilities")
  )
  np.testing.assert_allclose(sampled[0], model[0], atol=1e-5)
  assert (sampled[1] > model[1] + 0.1).all()
  assert (sampled[2] == 0).all()
  assert (model[2] < -0.1).all()


def test_seeds(checkpoint):
  config, params, prompt, _ = checkpoint("dense")
  engine = make_engine(config, params)
  seeds = (1, 1, 2, None, None)
  first, second = (tokens_of(engine.run([Request(prompt, 20, seed=seed) for seed in seeds])) for _ in range(2))
  assert first[0] == first[1] == second[0]
  assert first[2] == second[2] != first[0]
  others = [*first[3:], *second[3:]]
  assert len(set(map(tuple, others))) == 4


def test_ends(checkpoint):
  """An end token is the answer's last, max_new_tokens and the context are exact."""
  config, params, prompt, answer = checkpoint("dense")
  engine = make_engine(config, params, max_length=len(prompt) + 8)
  end = answer[4]
  stop = Request(prompt, 8, GREEDY, stop_ids=(end,))
  for request, length, reason in (
    (stop, answer.index(end) + 1, "stop"),
    (Request(prompt, 1, GREEDY), 1, "length"),
    (Request(prompt, 8, GREEDY), 8, "length"),
    (Request(prompt, 9, GREEDY), 8, "context"),
  ):
    (result,) = engine.run([request])
    assert (result.tokens, result.finish_reason) == (answer[:length], reason)


def test_a_prompt_is_prefilled_once_for_its_samples(checkpoint, monkeypatch):
  config, params, _, _ = checkpoint("dense")
  prompt = np.random.default_rng(0).integers(0, config.vocab_size, 50).tolist()
  requests = [Request(prompt, 12, seed=i) for i in range(4)]
  expected = tokens_of(make_engine(config, params, slots=1).run(requests))
  assert len(set(map(tuple, expected))) == 4
  for cache in ("dense", "paged"):
    engine = make_engine(config, params, cache=cache)
    prefilled = []
    original = engine._programs.prefill
    count = lambda params, tokens, place, cache: (
      prefilled.append(int(place.counts.sum())),  # noqa: B023
      original(params, tokens, place, cache),  # noqa: B023
    )[1]
    monkeypatch.setattr(engine._programs, "prefill", count)
    assert tokens_of(engine.run(requests)) == expected
    assert sum(prefilled) == len(prompt) - 1
    monkeypatch.undo()


def test_short_of_pages_requests_wait_their_turn(checkpoint):
  """With pages for a quarter of what all slots could hold, some give up theirs, and results stay the same."""
  config, params, _, _ = checkpoint("dense")
  requests = [dataclasses.replace(r, max_new_tokens=60) for r in varied_requests(config.vocab_size, 10, 40)]
  plenty = make_engine(config, params, cache="paged")
  expected = plenty.run(requests)
  page = 2 * config.num_layers * config.num_kv_heads * 16 * config.head_dim * 4
  few = make_engine(config, params, cache="paged", cache_bytes=9 * page)
  suspended = []
  original = few._suspend
  few._suspend = lambda sequence: (suspended.append(sequence.id), original(sequence))
  results = few.run(requests)
  assert suspended
  assert tokens_of(results) == tokens_of(expected)
  for request, result in zip(requests, results):
    check_log_probabilities(config, params, request, result)
  assert sum(map(len, few._cache.pages._free)) == 9  # all came back
  with pytest.raises(ValueError, match="fewer than the 8 of one sequence"):
    make_engine(config, params, cache="paged", cache_bytes=5 * page).run(requests)


def test_int8_cache_is_close(checkpoint):
  config, params, prompt, answer = checkpoint("dense")
  engine = make_engine(config, params, cache="paged", cache_dtype="int8")
  (result,) = engine.run([Request(prompt, len(answer), GREEDY)])
  expected = training_log_probabilities(config, params, [*prompt, *result.tokens])[len(prompt) - 1 :]
  error = np.abs(np.array(result.log_probabilities) - expected)
  assert 1e-5 < error.max() < 0.05


@pytest.mark.parametrize("cache", ["dense", "paged"])
def test_new_parameters_are_used(checkpoint, cache):
  """After an update, and also by what is under way, whose cache was made by the old ones."""
  config, params, prompt, answer = checkpoint("dense")
  other = initialize(config, 7)
  requests = [Request(prompt, len(answer), GREEDY), Request(prompt, 10, seed=0)]
  engine = make_engine(config, params, cache=cache)
  assert engine.run(requests)[0].tokens == answer
  engine.update(other)
  again = engine.run(requests)
  assert tokens_of(again) == tokens_of(make_engine(config, other, cache=cache).run(requests))
  assert again[0].tokens != answer
  for request, result in zip(requests, again):
    check_log_probabilities(config, other, request, result)


@pytest.mark.grows
@pytest.mark.parametrize("cache", ["dense", "paged"])
def test_nothing_is_compiled_after_the_warm_up(checkpoint, cache, compilations):
  config, params, _, _ = checkpoint("dense")
  few = {"prefill_rows": 2, "prefill_length": 16}
  engine = make_engine(config, params, slots=5, max_length=100, cache=cache, **few)  # a shape that no other test uses
  engine.warm_up()
  assert compilations.count > 5
  other = initialize(config, 3)
  before = compilations.count
  engine.update(other)
  assert compilations.count - before <= 1  # the cast of parameters that are bound to no device
  before = compilations.count
  requests = varied_requests(config.vocab_size, 16, longest_prompt=50)
  repeated = [dataclasses.replace(requests[0], seed=seed, hold=False) for seed in range(8)]
  engine.run([*requests, *repeated])
  assert compilations.count == before


@pytest.mark.parametrize("cache", ["dense", "paged"])
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_numbers_that_are_not_finite_stay_where_they_are(checkpoint, name, cache):
  """A token with a damaged embedding ends its own request; the others, in its slot later on too, are as without it."""
  config, params, _, _ = checkpoint(name)
  bad = 5
  requests = [
    dataclasses.replace(request, prompt=[t if t != bad else 6 for t in request.prompt], sampling=SamplingParams())
    for request in varied_requests(config.vocab_size, 8)
  ]
  bias = {bad: -1e9}
  requests = [dataclasses.replace(r, sampling=SamplingParams(logit_bias=bias)) for r in requests]
  expected = make_engine(config, params, cache=cache).run(requests)
  embedding = np.array(params["embed"]["embedding"])
  embedding[bad] = np.nan
  damaged = {**params, "embed": {"embedding": embedding}}
  engine = make_engine(config, damaged, cache=cache)
  mixed = [*requests[:2], Request([7, bad, 8], 40), *requests[2:], Request([bad], 40)]
  results = engine.run(mixed)
  assert [results[2].finish_reason, results[-1].finish_reason] == ["not_finite", "not_finite"]
  assert results[2].tokens == results[-1].tokens == []
  assert tokens_of([*results[:2], *results[3:-1]]) == tokens_of(expected)


def test_requests_that_cannot_run(checkpoint):
  config, params, prompt, answer = checkpoint("dense")
  engine = make_engine(config, params, adjustments=False)
  for make, message in (
    (lambda: Request([], 5), "the prompt has no tokens"),
    (lambda: Request([1], 0), "max_new_tokens=0"),
    (lambda: Request([1] * LENGTH, 5), f"a prompt of {LENGTH} tokens leaves no room in a context of {LENGTH}"),
    (lambda: Request([1, config.vocab_size], 5), f"token id {config.vocab_size} is outside of the vocabulary"),
    (lambda: Request([1], 5, SamplingParams(presence_penalty=1.0)), "adjustments=True"),
    (lambda: Request([1], 5, thinking_budget=3), "needs a vocabulary with <think>"),
    (lambda: Request([1], 5, thinking_budget=-1), "thinking_budget=-1"),
  ):
    with pytest.raises(ValueError, match=message):
      engine.run([Request(prompt, 3), make()])
  assert not engine.busy
  assert engine.run([Request(prompt, len(answer), GREEDY)])[0].tokens == answer
  with pytest.raises(ValueError, match="no parameters yet"):
    Engine(config, EngineSettings()).step()
  with pytest.raises(ValueError, match=r"cache='x'.*slots=0"):
    Engine(config, EngineSettings(cache="x", slots=0))
  with pytest.raises(ValueError, match="splits fsdp"):
    Engine(config, mesh=make_mesh({"fsdp": 8}))


def test_cancelled_requests_make_room(checkpoint):
  config, params, prompt, answer = checkpoint("dense")
  engine = make_engine(config, params, slots=1)
  running, waiting = engine.submit(Request(prompt, 100, seed=0)), engine.submit(Request(prompt, 5, seed=0))
  engine.step()
  assert 0 < len(engine.result(running).tokens) < 100
  engine.cancel(running)
  engine.cancel(waiting)
  assert not engine.busy
  assert engine.run([Request(prompt, len(answer), GREEDY)])[0].tokens == answer


@pytest.mark.grows
@pytest.mark.parametrize("cache", ["dense", "paged"])
def test_further_turns(checkpoint, cache):
  """A held request goes on from its cache; its log-probabilities are those of the whole sequence."""
  config, params, prompt, _ = checkpoint("dense")
  engine = make_engine(config, params, cache=cache)
  first = Request(prompt, 9, seed=1, hold=True)
  id = engine.submit(first)
  other = engine.submit(Request(prompt, 90, seed=2))
  while id not in engine.step():
    pass
  turn = [5, 6, 7, 8, 9] * 5
  engine.extend(id, turn, 7)
  while id not in engine.step():
    pass
  with pytest.raises(ValueError, match="does not fit"):
    engine.extend(id, [1] * LENGTH, 7)
  result = engine.release(id)
  assert [len(result.tokens), result.finish_reason] == [9 + 25 + 7, "length"]
  assert result.sampled == [True] * 9 + [False] * 25 + [True] * 7
  assert result.tokens[9:34] == turn
  expected = training_log_probabilities(config, params, [*prompt, *result.tokens])[len(prompt) - 1 :]
  given = np.array(result.log_probabilities)
  np.testing.assert_allclose(given[:9], expected[:9], atol=TOLERANCE)
  np.testing.assert_allclose(given[34:], expected[34:], atol=TOLERANCE)
  while engine.busy:
    engine.step()
  assert len(engine.take(other).tokens) == 90


@pytest.mark.parametrize("cache", ["dense", "paged"])
def test_recorded_experts_are_those_of_the_training_forward(checkpoint, cache):
  config, params, *_ = checkpoint("moe")
  L, k = config.num_layers, config.num_experts_per_token
  requests = varied_requests(config.vocab_size, 6)
  results = make_engine(config, params, cache=cache, record_experts=True).run(requests)
  for request, result in zip(requests, results):
    tokens = [*request.prompt, *result.tokens][:-1]
    row = in_a_row(tokens)
    experts = np.full((1, len(row[0]), L, k), -1, np.int16)
    experts[0, len(request.prompt) - 1 : len(tokens)] = result.experts
    replay = lambda experts, row=row: training_forward(config, params, *row, experts)[0]
    free = replay(None)
    np.testing.assert_allclose(replay(experts), free, atol=1e-5)
    wrong = np.where(experts >= 0, (experts + 1) % config.num_experts, experts)
    assert np.abs(np.asarray(replay(wrong) - free)).max() > 1e-2
  dense, dense_params, *_ = checkpoint("dense")
  assert make_engine(dense, dense_params).run(requests[:1])[0].experts == [None] * len(results[0].tokens)
  with pytest.raises(ValueError, match="record_experts=True and a dense model"):
    make_engine(dense, dense_params, record_experts=True)
