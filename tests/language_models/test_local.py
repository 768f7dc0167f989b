"""A model of this process, on a real tokenizer."""

import dataclasses

import pytest

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.language_models.language_model import ChatRequest
from qwen3_jax.language_models.local import LocalModel
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.rollout.engine_settings import EngineSettings
from tests.rollout.chain_model import CONFIG, chain, chain_model
from tests.rollout.conftest import one_length, tokenizer  # noqa: F401 - fixtures

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def words(tokenizer):  # noqa: F811
  return [id for id in range(400, 512) if tokenizer.token_bytes(id).strip().isalpha()][:4]


def test_answers(tokenizer, words, one_length):  # noqa: F811
  """A scripted model thinks two words and says one; the engine serves calls one after the other."""
  first = encode_conversation(tokenizer, HI, add_generation_prompt=True).ids
  empty = encode_conversation(tokenizer, HI, enable_thinking=False, add_generation_prompt=True).ids
  think, close = tokenizer.special_tokens["<think>"], tokenizer.special_tokens["</think>"]
  path = chain(think, words[0], words[1], close, words[2], tokenizer.im_end_id)
  model = from_parameters(CONFIG, chain_model({**path, first[-1]: think, empty[-1]: words[2]}))
  local = LocalModel(model, tokenizer, "chain", EngineSettings(slots=4, max_length=128))
  greedy = ChatRequest(HI, num_samples=2, max_tokens=20, temperature=0.0, seed=0)
  too_long = dataclasses.replace(greedy, messages=[{"role": "user", "content": "long " * 500}], num_samples=1)
  progress: list[tuple[int, int]] = []
  requests = [
    greedy,
    too_long,
    dataclasses.replace(greedy, enable_thinking=False, num_samples=1),
    dataclasses.replace(greedy, max_tokens=2, num_samples=1),
    dataclasses.replace(greedy, stop=(tokenizer.decode([words[2]]).strip(),), num_samples=1),
  ]
  (a, b), (failed,), (direct,), (cut,), (stopped,) = local.answer(requests, lambda *counts: progress.append(counts))
  assert a == b and a.thinking == tokenizer.decode(words[:2]) and a.response == tokenizer.decode([words[2]])
  assert (a.finish_reason, a.prompt_tokens, a.completion_tokens) == ("stop", len(first), 6)
  assert failed.finish_reason == "error" and "128" in failed.error
  assert (direct.thinking, direct.response) == ("", tokenizer.decode([words[2]]))
  assert cut.finish_reason == "length" and cut.completion_tokens == 2
  assert stopped.response.strip() == "" and stopped.finish_reason == "stop"
  assert sorted(progress) == [(i, 5) for i in range(1, 6)]
  assert local.usage.failed == 1 and local.usage.replies == 5
  # Sampling: the same seed gives the same replies in other company, another seed others.
  sampled = dataclasses.replace(greedy, temperature=3.0, top_k=0, top_p=1.0, max_tokens=8)
  (one,) = local.answer([sampled])
  assert local.answer([dataclasses.replace(sampled, seed=1), sampled])[1] == one
  assert one[0] != one[1] and local.answer([dataclasses.replace(sampled, seed=1)])[0] != one
