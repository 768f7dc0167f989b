"""A model of ours as lm-evaluation-harness sees one (`pip install 'qwen3_jax[eval]'`).

Importing this registers it: `lm_eval.simple_evaluate(model="qwen3_jax", model_args="pretrained=DIR", tasks=[...])`.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.perplexity import rolling
from qwen3_jax.evaluation.scoring import BATCH_TOKENS, score
from qwen3_jax.evaluation.slots import settings_with_slots
from qwen3_jax.loading import load_pretrained
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.generate import complete, context_length
from qwen3_jax.rollout.thinking_budget import BEFORE, INSIDE, ThinkingTokens

_MAX_NEW_TOKENS = 256  # where a task names no limit, as the harness's own models
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_HANDLED = {"until", "do_sample", "temperature", "max_gen_toks"}


@register_model("qwen3_jax")
class Qwen3LM(TemplateLM):
  """A language model of the harness.

  Args:
    pretrained: a folder that `load_pretrained` reads, or a loaded model.
    tokenizer: or a folder of one; the checkpoint's own unless given.
    dtype: of a model that is loaded here.
    enable_thinking: in chat prompts. An answer is then what follows the thinking, which counts as generated tokens
      unless it has a budget, and answers cannot be scored, only generated.
    thinking_budget: tokens of thinking before the model must answer.
    seed: of sampling.
    slots: sequences that are generated at a time; 0: sized to the requests.
    batch_tokens: tokens that are scored at a time.
    batch_size, max_batch_size, device: what the harness gives to every model; not used.
  """

  def __init__(
    self,
    pretrained: str | os.PathLike[str] | Transformer,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
    dtype: str = "bfloat16",
    enable_thinking: bool = False,
    thinking_budget: int | None = None,
    seed: int = 0,
    slots: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    batch_size: Any = None,
    max_batch_size: Any = None,
    device: Any = None,
  ):
    super().__init__()
    own = None
    if isinstance(pretrained, Transformer):
      self.model = pretrained
    else:
      self.model, own = load_pretrained(pretrained, dtype)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
      tokenizer = Tokenizer.from_pretrained(tokenizer)
    found = tokenizer or own
    if found is None:
      raise ValueError(f"{pretrained} has no tokenizer; give one")
    self.tokens = found
    self.thinking = ThinkingTokens.of(found)
    self.context = context_length(self.model.config)
    self.enable_thinking = enable_thinking
    self.thinking_budget = thinking_budget
    self.seed = seed
    self.slots = slots
    self.batch_tokens = batch_tokens

  @property
  def eot_token_id(self) -> int:
    return self.tokens.eos_id

  @property
  def max_length(self) -> int:
    return self.context

  @property
  def tokenizer_name(self) -> str:
    """What prompts depend on: the harness caches them under this name."""
    return f"{self.tokens.fingerprint}-{'thinking' if self.enable_thinking else 'plain'}"

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    return self.tokens.encode(string)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return "" if chat_template else None  # named in results only; `apply_chat_template` applies it

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """Without generation prompt the last message, the assistant's, stays open: the model continues it."""
    text = self.tokens.apply_chat_template(
      chat_history, enable_thinking=self.enable_thinking, add_generation_prompt=add_generation_prompt
    )
    if add_generation_prompt:
      return text
    last = chat_history[-1]["content"]
    start = text.rindex(last.strip())
    kept = text[start:].startswith(last.lstrip())  # with the space at its end
    return text[: start + len(last.lstrip() if kept else last.strip())]

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
  ) -> list[tuple[float, bool]]:
    """What does not fit the context loses its beginning.

    Raises ValueError for a continuation without tokens or longer than the context, and in chats that think.
    """
    for texts, context, tokens in requests:
      if not 1 <= len(tokens) <= self.context:
        raise ValueError(f"the continuation {texts[1]!r:.80} has {len(tokens)} tokens, expected 1 to {self.context}")
      if self.enable_thinking and self._thinks(context):
        raise ValueError("answers of a chat that thinks cannot be scored, only generated: switch thinking off")
    sequences = [[*context, *tokens][-self.context - 1 :] for _, context, tokens in requests]
    found = score(self.model, sequences, [len(tokens) for _, _, tokens in requests], self.batch_tokens)
    return [(float(np.sum(s.log_probabilities, dtype=np.float64)), bool(np.all(s.greedy))) for s in found]

  def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
    documents = self.tokens.encode_batch([request.args[0] for request in requests], allow_special=False)
    return rolling(self.model, documents, self.prefix_token_id, batch_tokens=self.batch_tokens)

  def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
    """Requests with the same options are generated together.

    A prompt that leaves no room for the answer loses its beginning. Raises ValueError if the answer alone needs more
    than the context.
    """
    answers = [""] * len(requests)
    groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
    prompts = [self.tokens.encode(request.args[0]) or [self.eot_token_id] for request in requests]
    for i, request in enumerate(requests):
      groups[repr(sorted(request.args[1].items())), self._thinks(prompts[i])].append(i)
    for (_, thinks), members in groups.items():
      options, until = self._options(requests[members[0]].args[1])
      if thinks:
        options["thinking_budget"] = self.thinking_budget
      else:
        options["stop"] = until  # which in thinking ends nothing
      asked = options["max_new_tokens"]
      if thinks and self.thinking_budget is not None:
        asked += self.thinking_budget + len(self.thinking.sentence)
      room = self.context - asked
      if room < 1:
        raise ValueError(f"an answer of {asked} tokens leaves no room for a prompt in a context of {self.context}")
      cut = [prompts[i][-room:] for i in members]
      settings = settings_with_slots(self.model.config, self.tokens, cut, self.slots, options)
      completions = complete(self.model, self.tokens, cut, seed=self.seed, settings=settings, **options)
      for i, (completion,) in zip(members, completions):
        text = completion.text if completion.thinking_end == "none" else completion.response
        answers[i] = _before(text, until)
    return answers

  def _thinks(self, prompt: Sequence[int]) -> bool:
    """Whether what follows is, or may open with, thinking."""
    phase = self.thinking.phase(list(prompt))
    return phase == INSIDE or (self.enable_thinking and phase == BEFORE and self.thinking.turn in prompt)

  def _options(self, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The harness's generation options as those of `complete`, and the strings that end an answer."""
    options: dict[str, Any] = {**normalize_gen_kwargs(given, _MAX_NEW_TOKENS)}
    unknown = sorted(set(options) - _HANDLED - set(_SAMPLING))
    if unknown:
      logging.getLogger(__name__).warning("generation options that change nothing here: %s", ", ".join(unknown))
    until = [string for string in options["until"] or [] if string]
    return {
      "temperature": float(options.get("temperature", 1.0)) if options["do_sample"] else 0.0,
      "top_p": 1.0,
      "top_k": 0,
      "max_new_tokens": options["max_gen_toks"],
      **{name: options[name] for name in _SAMPLING if options.get(name) is not None},
    }, until


def _before(text: str, ends: Sequence[str]) -> str:
  """The text up to the first of these strings."""
  places = [place for string in ends if (place := text.find(string)) >= 0]
  return text[: min(places)] if places else text
