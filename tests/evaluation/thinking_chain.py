"""A model that thinks eight tokens whatever it is told, and answers a; without having thought so far it answers b."""

from __future__ import annotations

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.questions import Asking
from qwen3_jax.models.transformer import Transformer, from_parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from tests.rollout.chain_model import CONFIG, chain, chain_model

THOUGHTS = 8
GREEDY = Asking(SamplingParams(temperature=0), SamplingParams(temperature=0), max_new_tokens=24)


def thinking_chain(tokenizer: Tokenizer) -> Transformer:
  ids = ThinkingTokens.of(tokenizer)
  ends = [
    encode_conversation(tokenizer, [{"role": "user", "content": "x"}], None, thinks, add_generation_prompt=True).ids[-1]
    for thinks in (True, False)
  ]
  a, b = (tokenizer.token_to_id(letter) for letter in "ab")
  used = {*ids.sentence, *ends, a, b}
  plain = [i for i in range(300, 512) if i not in used and tokenizer.token_bytes(i).isalpha()]
  successors = chain(ends[0], ids.start, *plain[:THOUGHTS], ids.end, a, tokenizer.im_end_id)
  successors |= {ends[1]: b, ids.sentence[-1]: b, b: tokenizer.im_end_id}
  return from_parameters(CONFIG, chain_model(successors))


def problem(number: int, answer: str, prompt: str = "") -> Problem:
  return Problem(f"p{number}", "logic", "letters", prompt or f"question {number}", {"kind": "exact"}, answer)
