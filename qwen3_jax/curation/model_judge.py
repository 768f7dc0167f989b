"""A model that is asked problems for its pass rates, as reinforcement learning will ask it."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_jax.curation.pass_rates import Judge
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.environment import ProblemEnvironment
from qwen3_jax.rl.asking import Asker, rollout_settings
from qwen3_jax.rollout.generate import context_length, make_engine
from qwen3_jax.rollout.sampling import SamplingParams


def make_asker(
  model: Transformer,
  tokenizer: Tokenizer,
  *,
  slots: int,
  max_length: int,
  max_new_tokens: int,
  temperature: float = 1.0,
  thinking_budget: int | None = None,
  enable_thinking: bool = True,
) -> Asker:
  """An engine with the model's parameters that answers as reinforcement learning samples: nothing is filtered.

  Args:
    slots: answers that are written at a time.
    max_length: tokens of a prompt and its answer; the model's context, where that is shorter.
    max_new_tokens, thinking_budget: of an answer, as `Request` has them.
  """
  length = min(max_length, context_length(model.config))
  settings = rollout_settings(slots, length)
  return Asker(
    engine=make_engine(model, tokenizer, settings),
    tokenizer=tokenizer,
    environment=ProblemEnvironment,
    sampling=SamplingParams(temperature=temperature),
    max_new_tokens=max_new_tokens,
    thinking_budget=thinking_budget,
    enable_thinking=enable_thinking,
  )


def judge_of(asker: Asker, samples: int, seed: int) -> Judge:
  """Asks `samples` times; the outcomes depend on the seed and the problem, not on which are asked together."""

  def judge(problems: Sequence[Problem]) -> list[list[bool]]:
    with asker.lock:
      groups = asker.ask(None, problems, samples, seed)
    return [[answer.right for answer in answers if not answer.broken] for answers in groups]

  return judge
