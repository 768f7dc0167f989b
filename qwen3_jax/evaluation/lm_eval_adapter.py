"""A model of ours as lm-evaluation-harness sees one (`pip install 'qwen3_jax[eval]'`)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.perplexity import rolling
from qwen3_jax.evaluation.scoring import score
from qwen3_jax.loading import load_pretrained
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.generate import complete, context_length

_MAX_NEW_TOKENS = 256  # where a task names no limit


@register_model("qwen3_jax")
class Qwen3LM(TemplateLM):
  """`simple_evaluate(model="qwen3_jax", model_args="pretrained=DIR")`, or made of a loaded model."""

  def __init__(
    self,
    pretrained: str | os.PathLike[str] | Transformer,
    tokenizer: Tokenizer | str | None = None,
    dtype: str = "bfloat16",
    enable_thinking: bool = False,
    thinking_budget: int | None = None,
    seed: int = 0,
    **_: Any,  # batch size and device, which the harness passes to every model
  ):
    super().__init__()
    if isinstance(pretrained, Transformer):
      self.model, own = pretrained, None
    else:
      self.model, own = load_pretrained(pretrained, dtype)
    found = Tokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer or own
    if found is None:
      raise ValueError(f"{pretrained} has no tokenizer; give one")
    self.tokens = found
    self.context = context_length(self.model.config)
    self.enable_thinking = enable_thinking
    self.thinking_budget = thinking_budget
    self.seed = seed

  @property
  def eot_token_id(self) -> int:
    return self.tokens.eos_id

  @property
  def tokenizer_name(self) -> str:
    return self.tokens.fingerprint

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    return self.tokens.encode(string)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return "" if chat_template else None  # named in results only; `apply_chat_template` applies it

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    return self.tokens.apply_chat_template(
      chat_history, enable_thinking=self.enable_thinking, add_generation_prompt=add_generation_prompt
    )

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
  ) -> list[tuple[float, bool]]:
    """What does not fit the context loses its beginning."""
    sequences = [[*context, *continuation][-self.context :] for _, context, continuation in requests]
    asked = [min(len(continuation), self.context - 1) for _, _, continuation in requests]
    found = score(self.model, sequences, asked)
    return [(float(np.sum(s.log_probabilities, dtype=np.float64)), bool(np.all(s.greedy))) for s in found]

  def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
    documents = [self.tokens.encode(request.args[0], allow_special=False) for request in requests]
    return rolling(self.model, documents, self.eot_token_id)

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """Requests with the same options are generated together."""
    answers: list[str] = [""] * len(requests)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
      groups[repr(sorted(request.args[1].items(), key=lambda item: item[0]))].append(i)
    for members in groups.values():
      options = self._options(requests[members[0]].args[1])
      room = self.context - options["max_new_tokens"]
      if room < 1:
        raise ValueError(f"max_gen_toks={options['max_new_tokens']} leaves no room in a context of {self.context}")
      prompts = [self.tokens.encode(requests[i].args[0])[-room:] or [self.eot_token_id] for i in members]
      for i, (completion,) in zip(members, complete(self.model, self.tokens, prompts, seed=self.seed, **options)):
        thought = completion.thinking_end != "none"
        answers[i] = completion.response if thought else completion.text
    return answers

  def _options(self, given: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation options, in our names."""
    until = given.get("until") or []
    sampled = given.get("do_sample", given.get("temperature", 0.0) > 0)
    names = ("top_p", "top_k", "min_p", "repetition_penalty")
    return {
      "temperature": float(given.get("temperature", 1.0)) if sampled else 0.0,
      "top_p": 1.0,
      "top_k": 0,
      "max_new_tokens": int(given.get("max_gen_toks", given.get("max_new_tokens", _MAX_NEW_TOKENS))),
      "stop": [until] if isinstance(until, str) else [string for string in until if string],
      "thinking_budget": self.thinking_budget,
      **{name: given[name] for name in names if name in given},
    }
