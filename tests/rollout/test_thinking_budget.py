"""Budgets on a model that thinks ten tokens and answers four, as its weights say."""

import dataclasses

import numpy as np
import pytest

from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.rollout.completion import completion
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import complete
from qwen3_jax.rollout.request import Request
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import AFTER, BEFORE, INSIDE, STOP_THINKING, ThinkingTokens
from tests.rollout.chain_model import CONFIG, chain, chain_model
from tests.rollout.test_engine import check_log_probabilities

GREEDY = SamplingParams(temperature=0)


@dataclasses.dataclass
class Script:
  """<think>, thoughts, </think>, response, <|im_end|> after `prompt`."""

  ids: ThinkingTokens
  prompt: int
  thoughts: list[int]
  response: list[int]
  end: int
  stray: int  # begins thinking that an end token cuts short
  params: dict
  engine: Engine

  def run(self, prompt=None, max_new_tokens=50, **options):
    request = Request([prompt or self.prompt], max_new_tokens, GREEDY, stop_ids=(self.end,), **options)
    (result,) = self.engine.run([request])
    check_log_probabilities(CONFIG, self.params, request, result)
    return result


@pytest.fixture(scope="module")
def script(tokenizer) -> Script:
  ids = ThinkingTokens.of(tokenizer)
  used = {*ids.sentence, *tokenizer.special_tokens.values()}
  plain = [id for id in range(300, 512) if id not in used and tokenizer.token_bytes(id).strip().isalpha()]
  prompt, stray, *rest = plain
  thoughts, response, other = rest[:10], rest[10:14], rest[14:16]
  end = tokenizer.im_end_id
  successors = chain(prompt, ids.start, *thoughts, ids.end, *response, end)
  successors |= {ids.sentence[-1]: response[0]} | chain(stray, *other, end)
  params = chain_model(successors)
  engine = Engine(CONFIG, EngineSettings(slots=4, max_length=256), thinking=ids)
  engine.update(params)
  return Script(ids, prompt, thoughts, response, end, stray, params, engine)


def test_sentence(tokenizer, script):
  assert tokenizer.decode(script.ids.sentence) == STOP_THINKING
  assert script.ids.end in script.ids.sentence


@pytest.mark.parametrize("budget", [None, 10, 11, 1000])
def test_thinking_that_needs_no_halt(tokenizer, script, budget):
  """Also where </think> comes exactly at the limit."""
  result = script.run(thinking_budget=budget)
  assert result.tokens == [script.ids.start, *script.thoughts, script.ids.end, *script.response, script.end]
  assert all(result.sampled)
  text = completion(tokenizer, script.ids, [script.prompt], result)
  assert (text.thinking_end, text.finish_reason) == ("closed", "stop")
  assert text.thinking == tokenizer.decode(script.thoughts)
  assert text.response == tokenizer.decode(script.response)


@pytest.mark.parametrize("budget", [0, 1, 9])
def test_the_sentence_is_inserted_at_the_budget(tokenizer, script, budget):
  result = script.run(thinking_budget=budget)
  thoughts, sentence = script.thoughts[:budget], list(script.ids.sentence)
  assert result.tokens == [script.ids.start, *thoughts, *sentence, *script.response, script.end]
  assert result.sampled == [True] * (budget + 1) + [False] * len(sentence) + [True] * 5
  inserted = [p for p, sampled in zip(result.sampling_log_probabilities, result.sampled) if not sampled]
  assert inserted == [0.0] * len(sentence)
  text = completion(tokenizer, script.ids, [script.prompt], result)
  assert (text.thinking_end, text.finish_reason) == ("budget", "stop")
  assert text.thinking == (tokenizer.decode(thoughts) + STOP_THINKING.split("</think>")[0]).strip("\n")
  assert text.response == tokenizer.decode(script.response)


@pytest.mark.parametrize("budget", [2, None])
def test_a_second_end_of_thinking(tokenizer, script, budget):
  """After the sentence it is no part of the response; of a model that was not halted it is a fault to be seen."""
  result = script.run(thinking_budget=budget)
  place = len(result.tokens) - len(script.response) - 1
  assert result.tokens[place:-1] == script.response
  for values, value in ((result.tokens, script.ids.end), (result.sampled, True)):
    values.insert(place, value)
  text = completion(tokenizer, script.ids, [script.prompt], result)
  assert text.response == ("" if budget else "</think>") + tokenizer.decode(script.response)


@pytest.mark.parametrize("budget", [3, 10, 50])
def test_the_answer_has_its_own_limit(script, budget):
  """max_new_tokens counts the answer where there is a budget, and everything where there is none."""
  result = script.run(thinking_budget=budget, max_new_tokens=2)
  assert result.finish_reason == "length"
  assert result.tokens[-2:] == script.response[:2]
  result = script.run(max_new_tokens=4)
  assert (result.tokens, result.finish_reason) == ([script.ids.start, *script.thoughts[:3]], "length")


def test_an_end_inside_thinking_ends_the_answer(tokenizer, script):
  ids = script.ids
  prompt = [ids.start, script.stray]
  request = Request(prompt, 50, GREEDY, stop_ids=(script.end,), thinking_budget=20)
  (result,) = script.engine.run([request])
  assert result.tokens[-1] == script.end
  text = completion(tokenizer, ids, prompt, result)
  assert (text.thinking_end, text.finish_reason, text.response) == ("unclosed", "stop", "")
  assert text.thinking == tokenizer.decode(result.tokens[:-1])


@pytest.mark.parametrize("budget", [0, 2])
def test_thinking_that_the_prompt_opened(script, budget):
  prompt = [script.prompt, script.ids.start]
  request = Request(prompt, 50, GREEDY, stop_ids=(script.end,), thinking_budget=budget)
  (result,) = script.engine.run([request])
  assert result.tokens == [*script.thoughts[:budget], *script.ids.sentence, *script.response, script.end]


def test_phase(script):
  ids = script.ids
  assert ids.phase([5, ids.start, 6]) == INSIDE
  assert ids.phase([5, ids.start, 6, ids.end, 7]) == AFTER
  assert ids.phase([ids.start, 6, ids.end, ids.turn, 7]) == BEFORE
  assert ThinkingTokens().phase([5, -1]) == BEFORE


@pytest.mark.parametrize(
  "phase, tokens, expected",
  [
    (BEFORE, [100, 5, 6, 101, 7], [5, 6]),
    (BEFORE, [4, 100, 5, 6, 101, 7, 100, 8, 101], [5, 6]),
    (BEFORE, [100, 5, 6], [5, 6]),
    (BEFORE, [5, 6, 7, 101, 7], [5, 6, 7]),  # opened out of sight
    (BEFORE, [5, 101, 100, 6], [5]),
    (BEFORE, [5, 6], None),
    (BEFORE, [], None),
    (INSIDE, [5, 100, 6, 101, 7], [5, 100, 6]),
    (INSIDE, [5, 6], [5, 6]),
    (INSIDE, [101, 7], []),
    (AFTER, [5, 100, 6, 101], None),
  ],
)
def test_thinking_of_an_answer(phase, tokens, expected):
  where = ThinkingTokens(start=100, end=101, sentence=(1,)).thinking(phase, tokens)
  assert (where if where is None else tokens[where]) == expected
  assert ThinkingTokens().thinking(BEFORE, tokens) is None


def test_a_context_that_ends_within_the_sentence(script):
  engine = Engine(CONFIG, EngineSettings(slots=1, max_length=12), thinking=script.ids)
  engine.update(script.params)
  (result,) = engine.run([Request([script.prompt], 50, GREEDY, thinking_budget=2)])
  assert (len(result.tokens), result.finish_reason) == (11, "context")
  assert result.tokens == [script.ids.start, *script.thoughts[:2], *script.ids.sentence[:8]]


def test_budgets_of_a_batch_are_their_own(script):
  budgets = (None, 0, 3, 10, 3, None)
  requests = [Request([script.prompt], 50, GREEDY, stop_ids=(script.end,), thinking_budget=b) for b in budgets]
  for budget, result in zip(budgets, script.engine.run(requests)):
    assert result.tokens == script.run(thinking_budget=budget).tokens
    assert result.thinking_halted == (budget in (0, 3))


def test_stop_strings(tokenizer, script):
  """An answer ends before the string, wherever tokens end; its tokens reach to the string's end."""
  model = from_parameters(CONFIG, script.params)
  whole = tokenizer.decode(script.response)
  pieces = [tokenizer.decode([token]) for token in script.response]
  across = pieces[1][-1] + pieces[2][:1]  # ends in the third token, begins in the second
  options = {"temperature": 0.0, "seed": 0, "settings": EngineSettings(slots=2, max_length=128)}
  (plain, stopped), (other, _) = complete(
    model, tokenizer, [[script.prompt], [script.ids.end]], num_samples=2, stop=("\0never", across), **options
  )
  assert plain == stopped
  assert stopped.finish_reason == "stop_string"
  assert stopped.response == whole[: whole.index(across)]
  assert stopped.token_ids == [script.ids.start, *script.thoughts, script.ids.end, *script.response[:3]]
  assert other.response == stopped.response
  assert np.isfinite(stopped.logprobs).all()
  with pytest.raises(ValueError, match="empty string"):
    complete(model, tokenizer, [[script.prompt]], stop=("",))
