"""`generate`: conversations in, completions out; `complete`: the same for prompts in token ids."""

from __future__ import annotations

import collections
import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Transformer, parameters
from qwen3_jax.rollout.completion import Completion, StopStrings, completion
from qwen3_jax.rollout.decoding_mesh import decoding_mesh, mesh_of
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.request import Request, derived_seed
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens

Conversation = Sequence[Mapping[str, Any]]
_SHORTEST = 128  # tokens of an engine: few lengths, few programs


def generate(
  model: Transformer,
  tokenizer: Tokenizer,
  conversations: Sequence[Conversation],
  *,
  tools: Sequence[Mapping[str, Any]] | None = None,
  enable_thinking: bool = True,
  **options: Any,
) -> list[list[Completion]]:
  """Answers conversations, `num_samples` times each.

  Args:
    model: as `load_pretrained` gives it; on a mesh, generation uses all of its devices.
    conversations: lists of messages, as `Tokenizer.apply_chat_template` takes them.
    tools: JSON schemas of functions that the model may call.
    enable_thinking: False opens every answer after an empty think block.
    options: of `complete`.

  Returns:
    For each conversation its completions.

  Raises:
    ValueError: for a malformed conversation, which it names, before anything is generated.
  """
  prompts = []
  for i, messages in enumerate(conversations):
    try:
      encoded = encode_conversation(tokenizer, messages, tools, enable_thinking, add_generation_prompt=True)
    except ValueError as error:
      raise ValueError(f"conversations[{i}]: {error}") from error
    prompts.append(encoded.ids)
  return complete(model, tokenizer, prompts, **options)


def complete(
  model: Transformer,
  tokenizer: Tokenizer,
  prompts: Sequence[Sequence[int]],
  *,
  thinking_budget: int | None = None,
  max_new_tokens: int = 2048,
  temperature: float = 0.6,
  top_p: float = 0.95,
  top_k: int = 20,
  min_p: float = 0.0,
  presence_penalty: float = 0.0,
  frequency_penalty: float = 0.0,
  repetition_penalty: float = 1.0,
  logit_bias: Mapping[int, float] | None = None,
  stop: Sequence[str] = (),
  seed: int | None = None,
  num_samples: int = 1,
  settings: EngineSettings | None = None,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Completion]]:
  """Continues prompts of token ids, `num_samples` times each.

  Args:
    thinking_budget: tokens of thinking after which it is halted and the answer begins; None: any number.
    max_new_tokens: at most; with a thinking budget, for the answer alone.
    temperature ... logit_bias: see `SamplingParams`; the defaults are the report's for thinking (section 4.6). It
      recommends temperature 0.7, top-p 0.8, presence penalty 1.5 without thinking.
    stop: strings that end an answer, which ends before them. The end of a turn or document always does.
    seed: with it, a prompt's completions are the same whatever else is generated; None: others each time.
    settings: of the engine; sized to the prompts unless given.
    on_progress: called with how many completions are done, and of how many.
  """
  if num_samples < 1:
    raise ValueError(f"num_samples={num_samples}, expected at least 1")
  if any(not string for string in stop):
    raise ValueError("stop: an empty string would end every answer")
  sampling = SamplingParams(
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    min_p=min_p,
    presence_penalty=presence_penalty,
    frequency_penalty=frequency_penalty,
    repetition_penalty=repetition_penalty,
    logit_bias=logit_bias or {},
  )
  ids = ThinkingTokens.of(tokenizer)
  prompts = [list(prompt) for prompt in prompts]
  if settings is None:
    longest = longest_sequence(prompts, ids, max_new_tokens, thinking_budget)
    settings = fitting_settings(model.config, len(prompts) * num_samples, longest, sampling.adjusts)
  engine = make_engine(model, tokenizer, settings)
  base = secrets.randbits(64) if seed is None else seed
  asked: collections.Counter[tuple[int, ...]] = collections.Counter()
  requests = []
  for i, prompt in enumerate(prompts):
    for _ in range(num_samples):
      number = asked[tuple(prompt)]
      asked[tuple(prompt)] += 1
      try:
        request = Request(
          prompt,
          max_new_tokens,
          sampling,
          stop_ids=end_ids(tokenizer),
          seed=derived_seed(base, prompt, number),
          thinking_budget=thinking_budget,
          ends_at=StopStrings(tokenizer, tuple(stop)) if stop else None,
        )
        engine.check(request)
      except ValueError as error:
        raise ValueError(f"prompt {i}: {error}") from error
      requests.append(request)
  results = engine.run(requests, on_progress)
  texts = [
    completion(tokenizer, ids, list(request.prompt), result, tuple(stop)) for request, result in zip(requests, results)
  ]
  return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]


def make_engine(model: Transformer, tokenizer: Tokenizer | None, settings: EngineSettings) -> Engine:
  """An engine with the model's parameters, on its devices."""
  params = parameters(model)
  mesh = mesh_of(params)
  engine = Engine(
    model.config,
    settings,
    mesh=None if mesh is None else decoding_mesh(model.config, mesh),
    thinking=None if tokenizer is None else ThinkingTokens.of(tokenizer),
  )
  engine.update(params)
  return engine


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
  """What ends an answer: the end of a turn, and of a document."""
  ends = [tokenizer.special_tokens[name] for name in ("<|im_end|>",) if name in tokenizer.special_tokens]
  return (*ends, tokenizer.eos_id)


def context_length(config: ModelConfig) -> int:
  """Tokens that a model can take."""
  extended = int(config.yarn_original_length * config.yarn_factor) if config.yarn_factor > 1 else 0
  return max(config.max_position_embeddings, extended)


def longest_sequence(
  prompts: Sequence[Sequence[int]], ids: ThinkingTokens, max_new_tokens: int, thinking_budget: int | None
) -> int:
  """Tokens that the longest prompt and an answer to it can have."""
  thinking = 0 if thinking_budget is None else thinking_budget + len(ids.sentence)
  return max(map(len, prompts), default=0) + thinking + max_new_tokens


def fitting_settings(config: ModelConfig, requests: int, tokens: int, adjustments: bool) -> EngineSettings:
  """Settings for so many requests of at most so many tokens; few different ones, so that programs are shared."""
  length = _SHORTEST
  while length < tokens:
    length *= 2
  slots = 1
  while slots < min(requests, EngineSettings.slots):
    slots *= 2
  context = context_length(config)
  return dataclasses.replace(EngineSettings(), slots=slots, max_length=min(length, context), adjustments=adjustments)
