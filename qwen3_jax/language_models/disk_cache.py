"""DiskCache: a language model whose replies are kept, so that no request is answered twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen3_jax.language_models.language_model import ChatRequest, LanguageModel, Reply
from qwen3_jax.language_models.usage import Usage

_LOCK_SECONDS = 60.0  # that a process waits for others that write


class DiskCache:
  """Answers from `path` what was asked before, the rest from `model`, and keeps that.

  A key is the whole request and the model's name. Requests without a seed, and replies that failed, are not kept. The
  file is SQLite with a write-ahead log: threads and processes may share it, and a process killed at any point leaves
  every reply it had got. On file systems without locks (some network ones) give each process its own.

  A model with `answer_each(requests, on_answer)`, as ours have, has each request's replies kept as they come; another
  has them kept once all of a call are there.
  """

  def __init__(self, model: LanguageModel, path: str | os.PathLike[str]):
    self.name = model.name
    self.usage = Usage()  # of this wrapper's calls; the model's own counts what others ask it, too
    self._model = model
    self._path = Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = threading.Lock()
    self._connection: tuple[int, sqlite3.Connection] | None = None  # of a process
    with self._lock:
      self._open()

  def answer(
    self, requests: Sequence[ChatRequest], on_progress: Callable[[int, int], None] = lambda done, total: None
  ) -> list[list[Reply]]:
    """As LanguageModel; equal requests with a seed are asked once. on_progress counts requests."""
    keys = [None if request.seed is None else key_of(self.name, request) for request in requests]
    found = self._read([key for key in dict.fromkeys(keys) if key is not None])
    answers: list[list[Reply] | None] = [None if key is None else found.get(key) for key in keys]
    self.usage.add_cached(sum(len(replies) for replies in answers if replies is not None))
    waiting: dict[str | int, list[int]] = {}  # what is asked once -> who waits for it
    for i, (key, replies) in enumerate(zip(keys, answers)):
      if replies is None:
        waiting.setdefault(i if key is None else key, []).append(i)
    groups = list(waiting.values())
    done = len(requests) - sum(map(len, groups))
    if done:
      on_progress(done, len(requests))

    def keep(number: int, replies: list[Reply]) -> None:
      nonlocal done
      first = groups[number][0]
      key = keys[first]
      self.usage.add(replies)
      if key is not None and all(reply.finish_reason != "error" for reply in replies):
        replies = self._write(key, requests[first], replies)
      for i in groups[number]:
        answers[i] = replies
      done += len(groups[number])
      on_progress(done, len(requests))

    missing = [requests[group[0]] for group in groups]
    answer_each = getattr(self._model, "answer_each", None)
    if missing and answer_each is not None:
      answer_each(missing, keep)
    elif missing:
      for number, replies in enumerate(self._model.answer(missing)):
        keep(number, replies)
    return [list(replies or []) for replies in answers]

  def close(self) -> None:
    with self._lock:
      if self._connection is not None and self._connection[0] == os.getpid():
        self._connection[1].close()
      self._connection = None

  def _open(self) -> sqlite3.Connection:
    """This process's connection: one that was opened before a fork must not be used. Under the lock."""
    if self._connection is None or self._connection[0] != os.getpid():
      connection = sqlite3.connect(self._path, timeout=_LOCK_SECONDS, check_same_thread=False, isolation_level=None)
      try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last replies, nothing else
        connection.execute(
          "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, request TEXT NOT NULL, replies TEXT NOT NULL)"
        )
      except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(f"{self._path}: not a cache of replies ({error}); remove it or name another") from None
      self._connection = (os.getpid(), connection)
    return self._connection[1]

  def _read(self, keys: list[str]) -> dict[str, list[Reply]]:
    found = {}
    with self._lock:
      connection = self._open()
      for key in keys:
        row = connection.execute("SELECT replies FROM replies WHERE key = ?", (key,)).fetchone()
        if row is not None:
          found[key] = [Reply(**reply) for reply in json.loads(row[0])]
    return found

  def _write(self, key: str, request: ChatRequest, replies: list[Reply]) -> list[Reply]:
    """-> what is kept: what another process kept meanwhile stays."""
    text = json.dumps([dataclasses.asdict(reply) for reply in replies])
    with self._lock:
      row = (key, _canonical(self.name, request), text)
      if self._open().execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", row).rowcount:
        return replies
    return self._read([key])[key]


def key_of(model: str, request: ChatRequest) -> str:
  """Under which the replies of a model to a request are kept."""
  return hashlib.sha256(_canonical(model, request).encode()).hexdigest()


def _canonical(model: str, request: ChatRequest) -> str:
  fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
  fields["messages"] = [dict(message) for message in request.messages]
  return json.dumps({"model": model, **fields}, sort_keys=True)
