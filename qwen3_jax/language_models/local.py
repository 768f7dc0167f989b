"""LocalModel: a model of this process behind the protocol of an endpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.language_models.language_model import ChatRequest, Reply, collected
from qwen3_jax.language_models.usage import Usage
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.completion import StopStrings, completion
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import context_length, end_ids, make_engine
from qwen3_jax.rollout.request import Request, Result, derived_seed
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens


class LocalModel:
  """One engine for all calls; a thread at a time generates, for all requests of its call at once.

  Args:
    name: part of what replies are cached under, so of these parameters alone, e.g. with the step.
    settings: of the engine; None: the defaults, as far as the model's context goes.
  """

  def __init__(self, model: Transformer, tokenizer: Tokenizer, name: str, settings: EngineSettings | None = None):
    self.name = name
    self.usage = Usage()
    self._tokenizer = tokenizer
    self._ids = ThinkingTokens.of(tokenizer)
    settings = settings or EngineSettings(max_length=min(EngineSettings.max_length, context_length(model.config)))
    self._engine = make_engine(model, tokenizer, settings)
    self._lock = threading.Lock()

  def answer(
    self, requests: Sequence[ChatRequest], on_progress: Callable[[int, int], None] = lambda done, total: None
  ) -> list[list[Reply]]:
    """As LanguageModel; on_progress counts requests."""
    return collected(self.answer_each, requests, on_progress)

  def answer_each(self, requests: Sequence[ChatRequest], on_answer: Callable[[int, list[Reply]], None]) -> None:
    """Calls on_answer with a request's number and its replies as soon as it has all of them."""
    with self._lock:
      prompts: dict[int, list[int]] = {}
      owners: dict[int, tuple[int, int]] = {}  # request in the engine -> number here, sample
      samples: list[dict[int, Reply]] = [{} for _ in requests]

      def finish(number: int, replies: list[Reply]) -> None:
        self.usage.add(replies)
        on_answer(number, replies)

      try:
        for number, request in enumerate(requests):
          try:
            prompts[number] = self._prompt(request)
            made = [self._request(request, prompts[number], sample) for sample in range(request.num_samples)]
            for one in made:
              self._engine.check(one)
          except ValueError as error:
            finish(number, [Reply("", "", "error", 0, 0, str(error))] * request.num_samples)
            continue
          if not made:
            finish(number, [])
          for sample, one in enumerate(made):
            owners[self._engine.submit(one)] = (number, sample)
        while owners:
          for id in self._engine.step():
            number, sample = owners.pop(id)
            request = requests[number]
            samples[number][sample] = self._reply(request, prompts[number], self._engine.take(id))
            if len(samples[number]) == request.num_samples:
              finish(number, [samples[number][i] for i in range(request.num_samples)])
      except BaseException:
        for id in owners:
          self._engine.cancel(id)
        raise

  def _prompt(self, request: ChatRequest) -> list[int]:
    thinks = request.enable_thinking
    return encode_conversation(
      self._tokenizer, request.messages, enable_thinking=thinks, add_generation_prompt=True
    ).ids

  def _request(self, request: ChatRequest, prompt: list[int], sample: int) -> Request:
    if any(not string for string in request.stop):
      raise ValueError("stop: an empty string would end every answer")
    return Request(
      prompt,
      request.max_tokens,
      SamplingParams(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        presence_penalty=request.presence_penalty,
      ),
      stop_ids=end_ids(self._tokenizer),
      seed=None if request.seed is None else derived_seed(request.seed, sample),
      ends_at=StopStrings(self._tokenizer, request.stop) if request.stop else None,
    )

  def _reply(self, request: ChatRequest, prompt: list[int], result: Result) -> Reply:
    text = completion(self._tokenizer, self._ids, prompt, result, request.stop)
    if text.finish_reason in ("stop", "stop_string"):
      return Reply(text.response, text.thinking, "stop", len(prompt), len(text.token_ids))
    if text.finish_reason in ("length", "context"):
      return Reply(text.response, text.thinking, "length", len(prompt), len(text.token_ids))
    return Reply("", "", "error", len(prompt), len(text.token_ids), f"generation ended: {text.finish_reason}")
