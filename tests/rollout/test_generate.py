"""The public function, on a real tokenizer."""

import jax
import numpy as np
import pytest

import qwen3_jax
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.rollout.decoding_mesh import decoding_mesh, mesh_of
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import generate, make_engine
from qwen3_jax.rollout.request import Request
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.stream import stream
from qwen3_jax.sharding import make_mesh, parameter_shardings
from tests.rollout.chain_model import CONFIG, chain, chain_model

QUESTIONS = [[{"role": "user", "content": text}] for text in ("Hi", "What is 2 + 2?", "Hi")]
SETTINGS = EngineSettings(slots=4, max_length=256)


@pytest.fixture(scope="module")
def model(golden):
  return from_parameters(*load_parameters(golden / "dense", "float32"))


def test_samples(model, tokenizer):
  """A conversation's samples differ, are the same with the same seed in any company, and others without one."""
  options = {"max_new_tokens": 12, "num_samples": 2, "settings": SETTINGS}
  first = generate(model, tokenizer, QUESTIONS, seed=0, **options)
  assert [len(samples) for samples in first] == [2, 2, 2]
  ids = [sample.token_ids for samples in first for sample in samples]
  assert len(set(map(tuple, ids))) == 6  # the question asked twice, too
  alone = generate(model, tokenizer, QUESTIONS[1:2], seed=0, **options)
  assert [s.token_ids for s in alone[0]] == [s.token_ids for s in first[1]]
  assert generate(model, tokenizer, QUESTIONS[::-1], seed=0, **options)[1] == first[1]
  assert generate(model, tokenizer, QUESTIONS, seed=1, **options) != first
  unseeded = [generate(model, tokenizer, QUESTIONS[:1], **options) for _ in range(2)]
  assert unseeded[0] != unseeded[1]
  for sample in first[0]:
    lengths = {len(x) for x in (sample.token_ids, sample.logprobs, sample.sampling_logprobs, sample.sampled)}
    assert lengths == {len(sample.token_ids)}
    assert (np.array(sample.sampling_logprobs) > np.array(sample.logprobs) - 8).all()  # filtered, sharpened


def test_on_a_mesh(golden, tokenizer, model):
  """Parameters laid out for training on eight devices: cast and moved to the layout for decoding."""
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  config, params = load_parameters(golden / "dense", "float32", mesh)
  assert mesh_of(params).shape["fsdp"] == 4
  for_decoding = decoding_mesh(config, mesh)
  assert dict(for_decoding.shape) == {"data": 4, "fsdp": 1, "expert": 1, "context": 1, "tensor": 2}
  assert for_decoding.devices.ravel().tolist() == mesh.devices.ravel().tolist()
  options = {"max_new_tokens": 12, "seed": 0, "settings": SETTINGS, "num_samples": 2}
  sharded = generate(from_parameters(config, params), tokenizer, QUESTIONS, **options)
  plain = generate(model, tokenizer, QUESTIONS, **options)
  tokens = lambda completions: [[sample.token_ids for sample in samples] for samples in completions]
  assert tokens(sharded) == tokens(plain)
  engine = make_engine(from_parameters(config, params), tokenizer, SETTINGS)
  query = engine._params["layers"][0]["attention"]["query"]
  expected = parameter_shardings(config, mesh)["layers"]["attention"]["query"]
  assert query.sharding.spec[1] == "tensor" and query.sharding.spec[0] is None
  assert expected.spec[1] is not None  # in training, split by its hidden axis
  from_host = engine._programs.layout(jax.device_get(params))
  for here, there in zip(jax.tree.leaves(engine._params), jax.tree.leaves(from_host), strict=True):
    assert here.sharding.is_equivalent_to(there.sharding, here.ndim)
    np.testing.assert_array_equal(here, there)


def test_without_thinking(tokenizer):
  """The answer follows an empty think block; what there is of one in the answer is response."""
  words = [id for id in range(400, 512) if tokenizer.token_bytes(id).strip().isalpha()][:3]
  ends = [encode_conversation(tokenizer, QUESTIONS[0], enable_thinking=x, add_generation_prompt=True).ids[-1]
          for x in (False, True)]  # fmt: skip
  path = chain(*words, tokenizer.im_end_id)
  params = chain_model(path | dict.fromkeys(ends, words[0]))
  model = from_parameters(CONFIG, params)
  for thinks in (True, False):
    ((sample,),) = generate(model, tokenizer, QUESTIONS[:1], enable_thinking=thinks, temperature=0.0)
    assert (sample.response, sample.thinking, sample.thinking_end) == (tokenizer.decode(words), "", "none")
    assert sample.finish_reason == "stop"
    assert sample.text == sample.response


def test_streaming_is_the_completion(model, tokenizer):
  """Pieces joined are the texts; leaving early frees the slot."""
  engine = make_engine(model, tokenizer, EngineSettings(slots=1, max_length=256))
  think = tokenizer.think_start_id
  no_tags = SamplingParams(logit_bias={think: -100, tokenizer.think_end_id: -100})
  requests = [Request([*start, *range(40, 50)], 60, no_tags, seed=3) for start in ([think], [])]
  for request in requests:
    *pieces, last = stream(engine, tokenizer, request)
    assert len(pieces) > 5
    for kind in ("thinking", "response"):
      assert "".join(piece.text for piece in pieces if piece.kind == kind) == getattr(last, kind).rstrip("\n")
    assert last.thinking_end == ("unclosed" if request is requests[0] else "none")
  for _ in stream(engine, tokenizer, requests[0]):
    break
  assert not engine.busy


def test_what_is_malformed_is_named(model, tokenizer):
  fits = QUESTIONS[0]
  for conversations, options, message in (
    ([fits, [{"role": "robot", "content": "x"}]], {}, r"conversations\[1\].*role is 'robot'"),
    ([fits, []], {}, r"conversations\[1\].*non-empty"),
    ([fits, [{"role": "user", "content": "word " * 900}]], {}, "prompt 1: .*leaves no room in a context of 256"),
    ([fits], {"num_samples": 0}, "num_samples=0"),
    ([fits], {"top_p": 0}, r"top_p=0, expected a number in \(0, 1\]"),
    ([fits], {"max_new_tokens": 0}, "max_new_tokens=0"),
    ([fits], {"logit_bias": {9999: 1.0}}, "token id 9999 is outside"),
  ):
    with pytest.raises(ValueError, match=message):
      generate(model, tokenizer, conversations, **options)
  assert generate(model, tokenizer, []) == []


def test_public_name():
  assert qwen3_jax.generate is generate
