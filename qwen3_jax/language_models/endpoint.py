"""Endpoint: a model behind an OpenAI-compatible HTTP server."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import urllib3

from qwen3_jax.language_models.language_model import ChatRequest, Reply, collected
from qwen3_jax.language_models.usage import Usage
from qwen3_jax.rollout.request import derived_seed

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that may pass
_NEVER = {401, 403, 404}  # of a wrong key, address or model: no request will do better
_MOST_BYTES = 1 << 26  # of one answer


@dataclasses.dataclass(frozen=True)
class Retries:
  """How often, and how long to wait before the n-th retry: uniform in [1/2, 1] of first_wait * 2**(n - 1) seconds."""

  attempts: int = 6  # the first included
  first_wait: float = 1.0  # seconds
  longest_wait: float = 60.0  # seconds, of a wait that the server asks for (Retry-After) too

  def __post_init__(self):
    if self.attempts < 1:
      raise ValueError(f"attempts={self.attempts}, expected at least 1")

  def wait(self, retry: int, asked: float | None) -> float:
    """Seconds before the retry numbered from 1; never less than the server asked for, within the longest wait."""
    planned = min(self.longest_wait, self.first_wait * 2 ** (retry - 1)) * random.uniform(0.5, 1.0)
    return planned if asked is None else min(max(asked, planned), self.longest_wait)


class Endpoint:
  """POST {url}/chat/completions, one HTTP request a sample.

  One request a sample counts tokens exactly, works where a server knows no `n`, and lets samples fail and be retried
  apart. Timeouts, broken connections, malformed answers and statuses that may pass (429, 5xx) are retried; other
  statuses fail at once; 401, 403 and 404 also fail whatever of the call has not been sent.

  Args:
    url: up to and with the version, e.g. "http://127.0.0.1:8000/v1".
    model: the name that the server knows the model by.
    api_key: sent as a bearer token unless empty.
    concurrency: requests that run at a time, over all calls and threads.
    timeout: seconds that an attempt may take in all.
    extra: further fields of every request's body, e.g. {"min_p": 0.0}; they take precedence.
  """

  def __init__(
    self,
    url: str,
    model: str,
    *,
    api_key: str = "",
    concurrency: int = 32,
    timeout: float = 600.0,
    retries: Retries = Retries(),
    extra: Mapping[str, Any] | None = None,
  ):
    if not url.startswith(("http://", "https://")):
      raise ValueError(f"url={url!r}, expected http://... or https://...")
    if concurrency < 1:
      raise ValueError(f"concurrency={concurrency}, expected at least 1")
    self.name = model
    self.usage = Usage()
    self._address = f"{url.rstrip('/')}/chat/completions"
    self._headers = {"content-type": "application/json", "accept": "application/json"}
    if api_key:
      self._headers["authorization"] = f"Bearer {api_key}"
    self._timeout = timeout
    self._retries = retries
    self._extra = dict(extra or {})
    self._concurrency = concurrency
    self._running = threading.BoundedSemaphore(concurrency)
    self._pool = urllib3.PoolManager(maxsize=concurrency, retries=False)

  def answer(
    self, requests: Sequence[ChatRequest], on_progress: Callable[[int, int], None] = lambda done, total: None
  ) -> list[list[Reply]]:
    """As LanguageModel; on_progress counts requests."""
    return collected(self.answer_each, requests, on_progress)

  def answer_each(self, requests: Sequence[ChatRequest], on_answer: Callable[[int, list[Reply]], None]) -> None:
    """Calls on_answer, in this thread, with a request's number and its replies as soon as it has all of them."""
    hopeless = _Hopeless()
    waiting = [(i, sample) for i, request in enumerate(requests) for sample in range(request.num_samples)]
    samples: list[list[Reply | None]] = [[None] * request.num_samples for request in requests]
    for i, request in enumerate(requests):
      if not request.num_samples:
        on_answer(i, [])
    pool = concurrent.futures.ThreadPoolExecutor(max(1, min(self._concurrency, len(waiting))))
    try:
      futures = {pool.submit(self._reply, requests[i], sample, hopeless): (i, sample) for i, sample in waiting}
      for future in concurrent.futures.as_completed(futures):
        i, sample = futures[future]
        samples[i][sample] = future.result()
        replies = [reply for reply in samples[i] if reply is not None]
        if len(replies) == len(samples[i]):
          self.usage.add(replies)
          on_answer(i, replies)
    finally:
      hopeless.stop("the call was given up")
      pool.shutdown(cancel_futures=True)

  def _reply(self, request: ChatRequest, sample: int, hopeless: _Hopeless) -> Reply:
    body = json.dumps(self._body(request, sample), ensure_ascii=False).encode(errors="replace")
    for attempt in range(1, self._retries.attempts + 1):
      with self._running:
        if hopeless.reason:
          return _failed(hopeless.reason)
        try:
          return self._attempt(body)
        except _Failure as failure:
          problem = failure
      if problem.status in _NEVER:
        hopeless.stop(f"{problem}")
      if not problem.passes:
        return _failed(f"{problem}")
      if attempt < self._retries.attempts:
        self.usage.add_retry()
        hopeless.wait(self._retries.wait(attempt, problem.retry_after))
    return _failed(f"{problem}, the last of {self._retries.attempts} attempts")

  def _attempt(self, body: bytes) -> Reply:
    deadline = time.monotonic() + self._timeout
    pieces: list[bytes] = []
    response: urllib3.BaseHTTPResponse | None = None
    try:
      timeout = urllib3.Timeout(connect=min(30.0, self._timeout), read=self._timeout)
      response = self._pool.request(
        "POST", self._address, body=body, headers=self._headers, timeout=timeout, preload_content=False, redirect=False
      )
      size = 0
      while piece := response.read1(1 << 16):  # servers that keep a connection alive send blanks, for ever perhaps
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
          raise _Failure(f"no answer within {self._timeout:g} s", passes=True)
        if size > _MOST_BYTES:
          raise _Failure(f"an answer of more than {_MOST_BYTES} bytes", passes=False)
      status, headers = response.status, response.headers
      response.release_conn()
      response = None
    except urllib3.exceptions.NewConnectionError as error:  # which urllib3 counts among the timeouts
      raise _Failure(f"{self._address}: {_first_line(str(error))}", passes=True) from None
    except urllib3.exceptions.TimeoutError:
      raise _Failure(f"no answer within {self._timeout:g} s", passes=True) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
      raise _Failure(f"{self._address}: {_first_line(str(error))}", passes=True) from None
    finally:
      if response is not None:
        response.close()
    text = b"".join(pieces).decode(errors="replace")
    if status != 200:
      after = _seconds(headers.get("retry-after", ""))
      raise _Failure(f"status {status}: {_message(text)}", status in _AGAIN, status, after)
    return _parse(text)

  def _body(self, request: ChatRequest, sample: int) -> dict[str, Any]:
    body: dict[str, Any] = {
      "model": self.name,
      "messages": [dict(message) for message in request.messages],
      "max_tokens": request.max_tokens,
      "temperature": request.temperature,
      "top_p": request.top_p,
      "presence_penalty": request.presence_penalty,
      "chat_template_kwargs": {"enable_thinking": request.enable_thinking},
    }
    if request.top_k:
      body["top_k"] = request.top_k
    if request.stop:
      body["stop"] = list(request.stop)
    if request.seed is not None:
      body["seed"] = derived_seed(request.seed, sample) % 2**31
    return body | self._extra


class _Failure(Exception):
  def __init__(self, message: str, passes: bool, status: int = 0, retry_after: float | None = None):
    super().__init__(message)
    self.passes, self.status, self.retry_after = passes, status, retry_after


class _Hopeless:
  """Why nothing more of a call is sent; "" while it is."""

  def __init__(self):
    self.reason = ""
    self._event = threading.Event()

  def stop(self, reason: str) -> None:
    self.reason = self.reason or reason
    self._event.set()

  def wait(self, seconds: float) -> None:
    self._event.wait(seconds)


def _failed(error: str) -> Reply:
  return Reply("", "", "error", 0, 0, error)


def _parse(text: str) -> Reply:
  """The reply in a body; raises _Failure for one that is none."""
  try:
    body = json.loads(text)
    choice = body["choices"][0]
    message = choice["message"]
    content = message.get("content") or ""
    thinking = message.get("reasoning_content") or message.get("reasoning") or ""
    usage = body.get("usage") or {}
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    if not isinstance(content, str) or not isinstance(thinking, str):
      raise TypeError("content is no text")
    finished = choice.get("finish_reason")
  except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
    raise _Failure(f"a malformed answer ({type(error).__name__}: {error}): {text[:200]!r}", passes=True) from None
  if not thinking:
    thinking, content = split_thinking(content, cut_short=finished == "length")
  return Reply(content, thinking.strip("\n"), "length" if finished == "length" else "stop", *tokens)


def split_thinking(text: str, cut_short: bool = False) -> tuple[str, str]:
  """(thinking, response) of a text with or without <think>; a template may have opened it out of sight."""
  opened = text.lstrip().startswith("<think>")
  before, closed, after = text.partition("</think>")
  if closed:
    return before.lstrip().removeprefix("<think>").strip("\n"), after.lstrip("\n")
  if opened and cut_short:
    return text.lstrip().removeprefix("<think>").strip("\n"), ""
  return "", text


def _message(text: str) -> str:
  """What a server says is wrong."""
  try:
    error = json.loads(text)
    for key in ("error", "message", "detail"):
      if isinstance(error, dict) and key in error:
        error = error[key]
    return _first_line(error if isinstance(error, str) else json.dumps(error))
  except ValueError:
    return _first_line(text) or "no explanation"


def _first_line(text: str) -> str:
  return (text.strip().splitlines() or [""])[0][:300]


def _seconds(retry_after: str) -> float | None:
  """Of a Retry-After header: a number of seconds, or an HTTP date."""
  try:
    return max(0.0, float(retry_after))
  except ValueError:
    pass
  try:
    return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
  except (ValueError, TypeError):
    return None
