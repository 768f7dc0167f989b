"""Environments: what starts a conversation and replies to a model's answers, and rewards them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from qwen3_jax.rollout.tool_calls import ToolCallError, parse_tool_calls
from qwen3_jax.rollout.tools_file import Tool, ToolResult

if TYPE_CHECKING:
  from qwen3_jax.rollout.request import FinishReason

Message = Mapping[str, Any]  # as `data.chat_template.render` takes them


@dataclasses.dataclass(frozen=True)
class Observation:
  """How a conversation begins."""

  messages: Sequence[Message]
  tools: Sequence[Mapping[str, Any]] | None = None  # JSON schemas, for the chat template


@dataclasses.dataclass(frozen=True)
class Action:
  """An answer of the model."""

  response: str  # what follows the thinking
  thinking: str = ""
  finish_reason: FinishReason = "stop"  # "length", "context": it was cut short

  @property
  def message(self) -> dict[str, Any]:
    """The assistant's turn."""
    thinking = {"reasoning_content": self.thinking} if self.thinking else {}
    return {"role": "assistant", "content": self.response, **thinking}


@dataclasses.dataclass(frozen=True)
class StepResult:
  """The environment's reply to an answer."""

  messages: Sequence[Message] = ()  # turns of the roles tool, user and system that follow the answer
  reward: float = 0.0  # of this answer
  done: bool = False  # the conversation has ended; no messages are read
  # Anything. Rollouts add up "tool_calls" and "tool_errors"; "max_turns" says that only the turns' number ended it.
  info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Environment(Protocol):
  """One conversation at a time.

  Rollouts call both methods in threads, one at a time for each environment, those of different environments at once;
  of a run of several processes, on the first, and what they return must be JSON.
  What raises or takes too long ends its own trajectory alone. One whose attribute `immediate` is true neither waits
  for anything nor works long: it is called without a thread, and a time limit.
  """

  def reset(self) -> Observation:
    """Starts anew."""
    ...

  def step(self, action: Action) -> StepResult: ...


EnvironmentFactory = Callable[[], Environment]  # e.g. functools.partial(ToolEnvironment, messages, tools)


def environments_of(factories: Sequence[EnvironmentFactory], num_samples: int = 1) -> list[Environment]:
  """`num_samples` environments of each factory, next to each other: no two samples share state."""
  return [factory() for factory in factories for _ in range(num_samples)]


class ToolEnvironment:
  """Runs the tools that answers call; ends when one calls none.

  Calls of one answer run one after the other, in its order; their results, each a message, follow it. A call that is
  malformed, raises or takes too long has what is wrong as its result.

  Args:
    messages: how the conversation begins.
    tools: what the model may call.
    reward: of the whole conversation at its end, results of the last answer's calls included; None: 0.
    max_turns: answers after which it ends in any case.
    call_seconds: of each call; those of an answer must fit the time that a rollout gives a step, too.
  """

  def __init__(
    self,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    reward: Callable[[Sequence[Message]], float] | None = None,
    *,
    max_turns: int = 8,
    call_seconds: float = 30.0,
  ):
    self._start = copy.deepcopy(list(messages))
    self._tools = list(tools)
    self._reward = reward
    self._max_turns = max_turns
    self._call_seconds = call_seconds
    self._turns = 0
    self.messages: list[Message] = []  # the conversation so far

  def reset(self) -> Observation:
    self._turns = 0
    self.messages = copy.deepcopy(self._start)
    return Observation(list(self.messages), [tool.schema for tool in self._tools] or None)

  def step(self, action: Action) -> StepResult:
    self._turns += 1
    calls = parse_tool_calls(action.response, self._tools).calls
    results = [
      ToolResult(call.message, True)
      if isinstance(call, ToolCallError)
      else call.result(self._tools, self._call_seconds)
      for call in calls
    ]
    replies: list[Message] = [{"role": "tool", "content": result.text} for result in results]
    self.messages += [action.message, *replies]
    info: dict[str, Any] = {"tool_calls": len(calls), "tool_errors": sum(result.failed for result in results)}
    if calls and self._turns < self._max_turns:
      return StepResult(replies, info=info)
    reward = 0.0 if self._reward is None else self._reward(self.messages)
    return StepResult(replies, reward, True, info | {"max_turns": bool(calls)})
