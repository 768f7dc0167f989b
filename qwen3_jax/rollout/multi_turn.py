"""`rollout`: conversations between a model and environments, in tokens, many at a time."""

from __future__ import annotations

import collections
import concurrent.futures
import copy
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from qwen3_jax.data.chat_template import check_messages
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.distributed import on_first_process, together
from qwen3_jax.rollout.completion import completion
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.environment import Action, Environment, Observation, StepResult
from qwen3_jax.rollout.generate import end_ids
from qwen3_jax.rollout.request import Request, Result
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.rollout.tools_file import describe, in_background

Ended = Literal[
  "done",  # the environment said so
  "length",  # likewise, after an answer that max_new_tokens cut short
  "max_turns",
  "context",  # an answer or what follows it does not fit
  "environment_error",  # it raised, or gave what makes no turn
  "environment_timeout",
  "not_finite",  # the logits
]
_ROLES = ("tool", "user", "system")  # of turns that environments write
_FEWEST_THREADS = 32


@dataclasses.dataclass
class Trajectory:
  """A conversation as the model read and wrote it. The lists of tokens are equally long."""

  prompt: list[int] = dataclasses.field(default_factory=list)  # [] if the environment did not start
  tokens: list[int] = dataclasses.field(default_factory=list)  # what follows: answers, and turns between them
  log_probabilities: list[float] = dataclasses.field(default_factory=list)  # of the model; 0 for turns between
  sampling_log_probabilities: list[float] = dataclasses.field(default_factory=list)  # of what was drawn from
  sampled: list[bool] = dataclasses.field(default_factory=list)  # False: turns between, and all that was inserted
  experts: list[np.ndarray | None] = dataclasses.field(default_factory=list)  # as `Result.experts`
  answers: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (start, end) of each in `tokens`
  rewards: list[float] = dataclasses.field(default_factory=list)  # of each answer; 0 where its step failed
  infos: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of each answer, as the environment gave it
  messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # what the tokens spell
  tools: list[Mapping[str, Any]] | None = None
  tool_calls: int = 0
  tool_errors: int = 0  # of these calls
  ended: Ended = "done"
  error: str = ""  # what went wrong, if it did

  @property
  def reward(self) -> float:
    """The sum."""
    return sum(self.rewards)

  @property
  def turns(self) -> int:
    """Answers."""
    return len(self.answers)


def rollout(
  engine: Engine,
  tokenizer: Tokenizer,
  environments: Sequence[Environment],
  *,
  sampling: SamplingParams | None = None,
  max_new_tokens: int = 1024,
  thinking_budget: int | None = None,
  enable_thinking: bool = True,
  max_turns: int = 8,
  step_timeout: float = 60.0,
  seeds: Sequence[int | None] | None = None,
) -> list[Trajectory]:
  """Lets the model converse with every environment -> trajectories in their order.

  The tokens of an answer stay as they were drawn, and are never encoded again. What the chat template puts between an
  answer's end and the next generation prompt is appended to them; an answer that was cut short gets its end first.
  Thinking stays, too, where the template would leave it out of earlier answers. While an environment is at work its
  request keeps its slot, and the others are decoded.

  Args:
    engine: with parameters, and the tokenizer's thinking tokens where there is a budget.
    environments: each another object: they run at once, in threads.
    sampling: None: the model's own distribution.
    max_new_tokens, thinking_budget: of each answer, as `Request` has them.
    enable_thinking: False opens every answer after an empty think block.
    max_turns: answers of a trajectory.
    step_timeout: seconds of a `reset` or `step` and the encoding of its turn, after which the environment is abandoned.
    seeds: with one, a trajectory is the same whatever else runs; None: others each time.

  Raises:
    ValueError: for arguments that fit nothing. What an environment does only ends its own trajectory.
  """
  sampling = sampling or SamplingParams()
  seeds = [None] * len(environments) if seeds is None else list(seeds)
  if len(seeds) != len(environments):
    raise ValueError(f"{len(seeds)} seeds, expected one for each of {len(environments)} environments")
  if None in seeds and together():
    raise ValueError("rollout: no seeds, expected one for each environment, since every process draws the same tokens")
  if max_turns < 1 or not 0 < step_timeout < math.inf:
    raise ValueError(f"max_turns={max_turns}, step_timeout={step_timeout}, expected at least 1 and a time in seconds")
  first = {id(environment): i for i, environment in reversed(list(enumerate(environments)))}
  for i, environment in enumerate(environments):
    if first[id(environment)] != i:
      raise ValueError(f"environments[{i}] is environments[{first[id(environment)]}], expected another object")
  request = functools.partial(
    Request,
    max_new_tokens=max_new_tokens,
    sampling=sampling,
    stop_ids=end_ids(tokenizer),
    thinking_budget=thinking_budget,
    hold=True,
  )
  engine.check(request([tokenizer.eos_id]))
  runs = [_Run(environment, seed) for environment, seed in zip(environments, seeds)]
  rollouts = _Rollouts(engine, tokenizer, request, enable_thinking, max_turns, step_timeout)
  rollouts.finish(runs)
  return [run.trajectory for run in runs]


def encode_turn(
  tokenizer: Tokenizer,
  messages: Sequence[Mapping[str, Any]],
  replies: Sequence[Mapping[str, Any]],
  tools: Sequence[Mapping[str, Any]] | None = None,
  enable_thinking: bool = True,
) -> list[int]:
  """Ids from the end of the last of `messages`, an assistant's, to the generation prompt after `replies`.

  The first is the token that ends an assistant's turn. Replies forge no control tokens (see `encode_conversation`).
  Raises ValueError for a template or messages that `encode_conversation` refuses.
  """
  stand_in = {"role": "assistant", "content": "x"}  # what answers hold is not read, and must not confuse the template
  before = [stand_in if message["role"] == "assistant" else message for message in messages]
  ids, mask = encode_conversation(tokenizer, [*before, *replies], tools, enable_thinking, add_generation_prompt=True)
  return ids[len(mask) - 1 - mask[::-1].index(True) :]


@dataclasses.dataclass(eq=False)
class _Run:
  """A trajectory under way."""

  environment: Environment
  seed: int | None
  id: int = -1  # of its request
  trajectory: Trajectory = dataclasses.field(default_factory=Trajectory)

  def fail(self, ended: Ended, error: str) -> None:
    self.trajectory.ended, self.trajectory.error = ended, error


class _Start(NamedTuple):
  """What a reset gives."""

  messages: list[dict[str, Any]]
  tools: list[Mapping[str, Any]] | None
  prompt: list[int]


class _Reply(NamedTuple):
  """What a step gives; no messages and tokens where none are appended."""

  reward: float
  done: bool
  info: dict[str, Any]
  tool_calls: int
  tool_errors: int
  messages: list[dict[str, Any]]
  tokens: list[int]


class _Rollouts:
  """Moves runs between the engine and the threads of their environments."""

  def __init__(
    self,
    engine: Engine,
    tokenizer: Tokenizer,
    request: Callable[..., Request],
    enable_thinking: bool,
    max_turns: int,
    seconds: float,
  ):
    self._engine, self._tokenizer, self._request = engine, tokenizer, request
    self._ids = ThinkingTokens.of(tokenizer)
    self._enable_thinking, self._max_turns, self._seconds = enable_thinking, max_turns, seconds
    self._max_new_tokens = request([0]).max_new_tokens
    self._work: _Work = _Background(max(engine.slots, _FEWEST_THREADS), seconds)
    if together():
      self._work = _OnFirstProcess(self._work)
    self._answering: dict[int, _Run] = {}  # by their requests' ids
    self._held: set[int] = set()
    self._prompts: dict[str, list[int]] = {}  # samples of a prompt share its encoding

  def finish(self, runs: Sequence[_Run]) -> None:
    """Runs all to their ends."""
    engine = self._engine
    for run in runs:
      self._add(run, functools.partial(self._reset, run.environment))
    try:
      wait = False
      while self._work or self._answering:
        for run, outcome in self._work.finished(wait):
          self._continue(run, outcome)
        wait = True
        if engine.busy:
          ended = engine.step()
          for id in ended:
            if id in self._answering:
              self._end_answer(self._answering.pop(id))
          wait = not ended and not engine.running  # nobody goes on before an environment replies
        if wait and self._answering and not self._work:
          raise RuntimeError("rollout: other requests hold the engine's slots; release them first")
    except BaseException:
      for run in runs:
        engine.cancel(run.id)  # those that have ended are gone
      raise

  def _add(self, run: _Run, function: Callable[[], Any]) -> None:
    """Work of the run's environment."""
    if together() or not getattr(run.environment, "immediate", False):
      self._work.add(run, function)
      return
    try:
      outcome = _Outcome(function())
    except Exception as error:
      outcome = _Outcome(error=describe(error))
    self._continue(run, outcome)

  # In the threads of environments

  def _reset(self, environment: Environment) -> _Start:
    observation = environment.reset()
    if not isinstance(observation, Observation):
      raise TypeError(f"it returned {type(observation).__name__}, expected Observation")
    messages = check_messages(observation.messages)
    tools = copy.deepcopy(list(observation.tools)) if observation.tools else None
    key = repr((messages, tools))
    if key not in self._prompts:
      encoded = encode_conversation(self._tokenizer, messages, tools, self._enable_thinking, add_generation_prompt=True)
      self._prompts[key] = encoded.ids
    return _Start(messages, tools, list(self._prompts[key]))

  def _step(self, run: _Run, action: Action, messages: list[dict[str, Any]], last: bool) -> _Reply:
    """`messages`: the conversation, the action's included."""
    result = run.environment.step(action)
    if not isinstance(result, StepResult):
      raise TypeError(f"it returned {type(result).__name__}, expected StepResult")
    reward, info = float(result.reward), dict(result.info)
    if not math.isfinite(reward):
      raise ValueError(f"the reward is {reward}, expected a finite number")
    known = (reward, bool(result.done), info, int(info.get("tool_calls", 0)), int(info.get("tool_errors", 0)))
    if result.done or last:
      return _Reply(*known, [], [])
    replies = check_messages(result.messages)
    for i, message in enumerate(replies):
      if message["role"] not in _ROLES:
        raise ValueError(f"messages[{i}].role is {message['role']!r}, expected one of {', '.join(_ROLES)}")
    tokens = encode_turn(self._tokenizer, messages, replies, run.trajectory.tools, self._enable_thinking)
    return _Reply(*known, replies, tokens)

  # Between them and the engine

  def _continue(self, run: _Run, outcome: _Outcome) -> None:
    """After a reset or step."""
    doing = "reset" if run.id < 0 else "step"
    if outcome.late:
      run.fail("environment_timeout", f"{doing} gave no result within {self._seconds:g} s")
    elif outcome.error:
      run.fail("environment_error", f"{doing}: {outcome.error}")
    elif run.id < 0:
      self._submit(run, _Start(*outcome.value))
      return
    elif self._extend(run, _Reply(*outcome.value)):
      return
    self._close(run)

  def _submit(self, run: _Run, start: _Start) -> None:
    trajectory, longest = run.trajectory, self._engine.settings.max_length
    trajectory.messages, trajectory.tools, trajectory.prompt = start
    if len(start.prompt) >= longest:
      run.fail("context", f"a prompt of {len(start.prompt)} tokens leaves no room in a context of {longest}")
      return
    run.id = self._engine.submit(self._request(start.prompt, seed=run.seed))
    trajectory.answers.append((0, 0))
    self._answering[run.id] = run

  def _end_answer(self, run: _Run) -> None:
    """Hands the answer to its environment."""
    trajectory, result = run.trajectory, self._engine.result(run.id)
    start = trajectory.answers[-1][0]
    trajectory.answers[-1] = (start, len(result.tokens))
    trajectory.rewards.append(0.0)
    trajectory.infos.append({})
    reason = result.finish_reason
    if reason in ("stop", "length"):
      self._held.add(run.id)
    if reason == "not_finite":
      run.fail("not_finite", "the model's logits are not finite")
      self._close(run)
      return
    part = Result(
      result.tokens[start:],
      result.log_probabilities[start:],
      result.sampling_log_probabilities[start:],
      result.sampled[start:],
      finish_reason=reason,
      thinking_halted=not all(result.sampled[start:]),
    )
    answer = completion(self._tokenizer, self._ids, [*trajectory.prompt, *result.tokens[:start]], part)
    action = Action(answer.response, answer.thinking, answer.finish_reason)
    trajectory.messages.append(action.message)
    last = reason == "context" or trajectory.turns == self._max_turns
    self._add(run, functools.partial(self._step, run, action, list(trajectory.messages), last))

  def _extend(self, run: _Run, reply: _Reply) -> bool:
    """Whether the model answers again."""
    trajectory, result = run.trajectory, self._engine.result(run.id)
    trajectory.rewards[-1], trajectory.infos[-1] = reply.reward, reply.info
    trajectory.tool_calls += reply.tool_calls
    trajectory.tool_errors += reply.tool_errors
    if result.finish_reason == "context":
      run.fail("context", f"the answer does not fit a context of {self._engine.settings.max_length} tokens")
    elif reply.done and reply.info.get("max_turns"):
      trajectory.ended = "max_turns"
    elif reply.done:
      trajectory.ended = "length" if result.finish_reason == "length" else "done"
    elif trajectory.turns == self._max_turns:
      trajectory.ended = "max_turns"
    else:
      has_end = result.tokens[-1] == reply.tokens[0]
      try:
        self._engine.extend(run.id, reply.tokens[has_end:], self._max_new_tokens)
      except ValueError as error:
        run.fail("context", str(error))
        return False
      trajectory.messages += reply.messages
      trajectory.answers.append((len(result.tokens), len(result.tokens)))
      self._held.discard(run.id)
      self._answering[run.id] = run
      return True
    return False

  def _close(self, run: _Run) -> None:
    """Takes the tokens from the engine."""
    if run.id < 0:
      return
    result = self._engine.release(run.id) if run.id in self._held else self._engine.take(run.id)
    self._held.discard(run.id)
    for name in ("tokens", "log_probabilities", "sampling_log_probabilities", "sampled", "experts"):
      setattr(run.trajectory, name, getattr(result, name))


class _Outcome(NamedTuple):
  """Of a reset or step."""

  value: Sequence[Any] = ()  # of a `_Start` or `_Reply`
  error: str = ""  # what it raised
  late: bool = False  # it took too long


class _Work(Protocol):
  """Work of runs: what `add` was given."""

  def __bool__(self) -> bool:
    """Whether any is left."""
    ...

  def add(self, run: _Run, function: Callable[[], Any]) -> None: ...

  def finished(self, wait: bool) -> list[tuple[_Run, _Outcome]]:
    """What has ended; `wait`: not before something has, if anything runs."""
    ...


class _OnFirstProcess:
  """Work that process 0 does; all processes get what has ended in the same order, and go on alike."""

  def __init__(self, work: _Work):
    self._work = work
    self._left: dict[int, _Run] = {}  # by the number of their work
    self._numbers = itertools.count()

  def __bool__(self) -> bool:
    return bool(self._left)

  def add(self, run: _Run, function: Callable[[], Any]) -> None:
    self._left[next(self._numbers)] = run
    if jax.process_index() == 0:
      self._work.add(run, function)

  def finished(self, wait: bool) -> list[tuple[_Run, _Outcome]]:
    if not self._left:
      return []
    numbers = {run: number for number, run in self._left.items()}  # a run has one piece of work at a time
    ended = on_first_process(lambda: [(numbers[run], outcome) for run, outcome in self._work.finished(wait)])
    return [(self._left.pop(number), _Outcome(*outcome)) for number, outcome in ended]


class _Background:
  """Work of runs in daemon threads, so many at a time; the time limit of each begins when it does."""

  def __init__(self, threads: int, seconds: float):
    self._threads, self._seconds = threads, seconds
    self._waiting: collections.deque[tuple[_Run, Callable[[], Any]]] = collections.deque()
    self._running: dict[_Run, tuple[concurrent.futures.Future[Any], float]] = {}  # with their deadlines

  def __bool__(self) -> bool:
    return bool(self._waiting or self._running)

  def add(self, run: _Run, function: Callable[[], Any]) -> None:
    self._waiting.append((run, function))
    self._start()

  def finished(self, wait: bool) -> list[tuple[_Run, _Outcome]]:
    """What has ended, or whose time is over; `wait`: not before something has, if anything runs."""
    if wait and self._running:
      futures, deadlines = zip(*self._running.values())
      left = min(deadlines) - time.monotonic()
      concurrent.futures.wait(futures, max(left, 0.0), concurrent.futures.FIRST_COMPLETED)
    now = time.monotonic()
    over = [run for run, (future, deadline) in self._running.items() if future.done() or now >= deadline]
    ended = [(run, self._running.pop(run)[0]) for run in over]
    self._start()
    return [(run, _outcome(future)) for run, future in ended]

  def _start(self) -> None:
    while self._waiting and len(self._running) < self._threads:
      run, function = self._waiting.popleft()
      self._running[run] = (in_background(function), time.monotonic() + self._seconds)


def _outcome(future: concurrent.futures.Future[Any]) -> _Outcome:
  if not future.done():
    return _Outcome(late=True)
  error = future.exception()
  return _Outcome(future.result()) if error is None else _Outcome(error=describe(error))
