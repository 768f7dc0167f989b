"""Questions that differ in mode and budget, asked of a model or of an engine that is already there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.completion import Completion, completion
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.generate import context_length, end_ids, fitting_settings, longest_sequence, make_engine
from qwen3_jax.rollout.request import Request, Result
from qwen3_jax.rollout.sampling import NOT_THINKING, THINKING, SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens


@dataclasses.dataclass(frozen=True)
class Question:
  """A conversation that ends with the user's turn."""

  messages: Sequence[Mapping[str, Any]]
  seeds: Sequence[int]  # of an answer each
  thinks: bool = True  # whether the answer should: says how it is sampled
  enable_thinking: bool = True  # False: the template opens the answer after an empty think block
  thinking_budget: int | None = None


@dataclasses.dataclass(frozen=True)
class Answered:
  text: str  # the assistant's turn, with what the template opened it with
  completion: Completion
  thinking_tokens: int  # that the model wrote: not the sentence of a budget

  @property
  def truncated(self) -> bool:
    return self.completion.finish_reason in ("length", "context")


# Answers to each question, one a seed; none where the prompt leaves no room for any.
Ask = Callable[[Sequence[Question]], list[list[Answered]]]


@dataclasses.dataclass(frozen=True)
class Asking:
  """How models are asked."""

  thinking: SamplingParams = THINKING
  not_thinking: SamplingParams = NOT_THINKING
  max_new_tokens: int = 2048  # of an answer; with a budget, after the thinking
  slots: int = 0  # sequences at a time; 0: sized to the questions

  def of_engine(self, engine: Engine, tokenizer: Tokenizer) -> Ask:
    """Asks an engine that nobody else uses meanwhile, with its parameters and its thinking tokens.

    The function raises ValueError for what the engine does not take: penalties without `adjustments`.
    """

    def ask(questions: Sequence[Question]) -> list[list[Answered]]:
      requests = self._requests(tokenizer, questions, engine.settings.max_length)
      return _answers(engine, tokenizer, requests)

    return ask

  def of_model(self, model: Transformer, tokenizer: Tokenizer) -> Ask:
    """Each call makes an engine that fits its questions."""
    ids = ThinkingTokens.of(tokenizer)

    def ask(questions: Sequence[Question]) -> list[list[Answered]]:
      groups = self._requests(tokenizer, questions, context_length(model.config))
      requests = [request for group in groups for request in group]
      if not requests:
        return [[] for _ in groups]
      longest = max(longest_sequence([r.prompt], ids, r.max_new_tokens, r.thinking_budget) for r in requests)
      settings = fitting_settings(model.config, len(requests), longest, any(r.sampling.adjusts for r in requests))
      if self.slots:
        settings = dataclasses.replace(settings, slots=self.slots)
      return _answers(make_engine(model, tokenizer, settings), tokenizer, groups)

    return ask

  def _requests(self, tokenizer: Tokenizer, questions: Sequence[Question], room: int) -> list[list[Request]]:
    groups = []
    for question in questions:
      prompt = encode_conversation(
        tokenizer, question.messages, enable_thinking=question.enable_thinking, add_generation_prompt=True
      ).ids
      request = Request(
        prompt,
        self.max_new_tokens,
        self.thinking if question.thinks else self.not_thinking,
        stop_ids=end_ids(tokenizer),
        thinking_budget=question.thinking_budget,
      )
      seeds = question.seeds if len(prompt) < room else ()
      groups.append([dataclasses.replace(request, seed=seed) for seed in seeds])
    return groups


ASKING = Asking()


def _answers(engine: Engine, tokenizer: Tokenizer, groups: Sequence[Sequence[Request]]) -> list[list[Answered]]:
  results = iter(engine.run([request for group in groups for request in group]))
  ids = ThinkingTokens.of(tokenizer)
  return [[_answered(tokenizer, ids, list(request.prompt), next(results)) for request in group] for group in groups]


def _answered(tokenizer: Tokenizer, ids: ThinkingTokens, prompt: list[int], result: Result) -> Answered:
  found = completion(tokenizer, ids, prompt, result)
  header = next((i for i in reversed(range(len(prompt))) if prompt[i] == ids.turn), len(prompt))
  opening = tokenizer.decode(prompt[header:], skip_special=True).partition("\n")[2]
  where = ids.thinking(ids.phase(prompt), result.tokens)
  return Answered(opening + found.text, found, 0 if where is None else sum(result.sampled[where]))
