"""Replies that outlive calls, processes and kills."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwen3_jax.language_models.disk_cache import DiskCache, key_of
from qwen3_jax.language_models.endpoint import Endpoint, Retries
from qwen3_jax.language_models.language_model import ChatRequest, Reply
from tests.language_models.chat_server import Answer, ChatServer, chat

ROOT = Path(__file__).parent.parent.parent


def ask(text: str, seed: int | None = 0, **options) -> ChatRequest:
  return ChatRequest([{"role": "user", "content": text}], seed=seed, **options)


def echo(body) -> Answer:
  text = body["messages"][0]["content"]
  return Answer({}, 400) if text == "bad" else Answer(chat(f"{text}!", reasoning_content="é\ud83d\ude00"))


def test_nothing_is_asked_twice(tmp_path):
  with ChatServer(echo) as server:
    model = Endpoint(server.url, "m", retries=Retries(attempts=1))
    cache = DiskCache(model, tmp_path / "replies.sqlite")
    requests = [ask("a", num_samples=2), ask("b"), ask("bad"), ask("b"), ask("c", seed=None)]
    progress: list[tuple[int, int]] = []
    first = cache.answer(requests, lambda *counts: progress.append(counts))
    assert [[r.response for r in replies] for replies in first] == [["a!", "a!"], ["b!"], [""], ["b!"], ["c!"]]
    assert first[2][0].finish_reason == "error" and progress[-1] == (5, 5)
    assert len(server.bodies) == 5  # b once
    again = DiskCache(model, tmp_path / "replies.sqlite")
    assert again.answer(requests) == first
    texts = [body["messages"][0]["content"] for body in server.bodies[5:]]
    assert sorted(texts) == ["bad", "c"]  # failures and requests without a seed are asked again
    assert again.usage.cached == 4 and again.usage.replies == 1
  assert again.answer(requests[:2]) == first[:2]  # the server is gone


def test_every_part_of_a_request_counts():
  base = ask("a")
  changed = {
    "messages": [{"role": "user", "content": "b"}],
    "num_samples": 2,
    "max_tokens": 1,
    "temperature": 0.0,
    "top_p": 0.5,
    "top_k": 1,
    "presence_penalty": 1.0,
    "enable_thinking": False,
    "stop": ("x",),
    "seed": 1,
  }
  assert set(changed) == {field.name for field in dataclasses.fields(ChatRequest)}
  keys = {key_of("m", dataclasses.replace(base, **{name: value})) for name, value in changed.items()}
  keys |= {key_of("m", base), key_of("other", base)}
  assert len(keys) == len(changed) + 2
  assert key_of("m", base) == key_of("m", ask("a"))


class Plain:
  """A model without answer_each."""

  name = "plain"

  def __init__(self):
    self.asked: list[str] = []

  def answer(self, requests, on_progress=lambda done, total: None):
    self.asked += [request.messages[0]["content"] for request in requests]
    return [[Reply(str(len(self.asked)), "", "stop", 1, 1)] for _ in requests]


def test_any_model_and_many_threads(tmp_path):
  model = Plain()
  cache = DiskCache(model, tmp_path / "replies.sqlite")
  cache.answer([ask(str(i)) for i in range(50)])
  results: list[list[list[Reply]]] = []
  threads = [
    threading.Thread(target=lambda: results.append(cache.answer([ask(str(i)) for i in range(60)]))) for _ in range(8)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 8 and model.asked[:50] == [str(i) for i in range(50)]
  assert set(model.asked[50:]) == {str(i) for i in range(50, 60)}
  assert all(result == results[0] for result in results)  # who was first, is kept


def test_processes_share_it_and_one_is_killed(tmp_path):
  """A killed process leaves what it had got; another goes on, while a third reads."""
  path = tmp_path / "replies.sqlite"
  program = (
    "import sys; from tests.language_models.test_disk_cache import ask;"
    "from qwen3_jax.language_models.disk_cache import DiskCache;"
    "from qwen3_jax.language_models.endpoint import Endpoint;"
    "DiskCache(Endpoint(sys.argv[1], 'm', concurrency=2), sys.argv[2]).answer([ask(str(i)) for i in range(60)])"
  )
  reached = threading.Event()

  def answer(body):
    if len(server.bodies) >= 20:
      reached.set()
    return Answer(chat(body["messages"][0]["content"]), seconds=0.01)

  with ChatServer(answer) as server:
    command = [sys.executable, "-c", program, server.url, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(server.bodies)
    assert before < 60
    cache = DiskCache(Endpoint(server.url, "m"), path)
    replies = cache.answer([ask(str(i)) for i in range(60)])
  assert [reply.response for (reply,) in replies] == [str(i) for i in range(60)]
  assert cache.usage.cached >= before - 4  # at most those on their way, and those that were not yet written
  assert len(server.bodies) - before == 60 - cache.usage.cached


def test_not_a_cache(tmp_path):
  path = tmp_path / "replies.sqlite"
  path.write_text("something else " * 100)
  with pytest.raises(ValueError, match=r"replies\.sqlite: not a cache"):
    DiskCache(Plain(), path)
