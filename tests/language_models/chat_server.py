"""A real HTTP server on this machine that answers as a script says."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Answer:
  """What the server sends: a status and a body, after some seconds."""

  def __init__(self, body: Any = None, status: int = 200, headers: dict[str, str] | None = None, seconds: float = 0.0):
    self.data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.status, self.headers, self.seconds = status, headers or {}, seconds


def chat(content: str, finish_reason: str = "stop", tokens: tuple[int, int] = (3, 5), **message: Any) -> dict[str, Any]:
  """A body as OpenAI's reference gives it."""
  return {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [
      {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
      }
    ],
    "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
  }


class ChatServer:
  def __init__(self, answer: Callable[[dict[str, Any]], Answer]):
    """answer: from a request's body to what is sent; called in a thread of each request."""
    self.bodies: list[dict[str, Any]] = []
    self.headers: list[dict[str, str]] = []
    self.times: list[float] = []
    self.most_at_once = 0
    self._at_once = 0
    self._lock = threading.Lock()
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"
      disable_nagle_algorithm = True

      def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with outer._lock:
          outer.bodies.append({"path": self.path, **body})
          outer.headers.append({key.lower(): value for key, value in self.headers.items()})
          outer.times.append(time.monotonic())
          outer._at_once += 1
          outer.most_at_once = max(outer.most_at_once, outer._at_once)
        sent = answer(body)
        time.sleep(sent.seconds)
        with outer._lock:
          outer._at_once -= 1
        with contextlib.suppress(OSError):  # a client that went away
          self.send_response(sent.status)
          for name, value in {"content-length": str(len(sent.data)), **sent.headers}.items():
            self.send_header(name, value)
          self.end_headers()
          self.wfile.write(sent.data)

      def log_message(self, *_: Any) -> None:
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

  def __enter__(self) -> ChatServer:
    threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self._server.shutdown()
    self._server.server_close()


@contextlib.contextmanager
def scripted(*answers: Answer) -> Iterator[ChatServer]:
  """Sends these one after the other, then the last for ever."""
  lock, left = threading.Lock(), list(answers)

  def next_answer(_: dict[str, Any]) -> Answer:
    with lock:
      return left.pop(0) if len(left) > 1 else left[0]

  with ChatServer(next_answer) as server:
    yield server
