"""The client against real HTTP."""

import socket
import threading
import time

import pytest

from qwen3_jax.language_models.endpoint import Endpoint, Retries, split_thinking
from qwen3_jax.language_models.language_model import ChatRequest
from tests.language_models.chat_server import Answer, ChatServer, chat, scripted

FAST = Retries(attempts=3, first_wait=0.02)


def ask(text: str = "Hi", **options) -> ChatRequest:
  return ChatRequest([{"role": "user", "content": text}], **options)


def test_what_is_sent_and_understood():
  body = chat("Four.", reasoning_content="\n2 + 2\n", tokens=(11, 7))
  with scripted(Answer(body)) as server:
    model = Endpoint(server.url, "some-model", api_key="secret", extra={"min_p": 0.1})
    request = ask(num_samples=2, max_tokens=99, temperature=0.5, top_p=0.9, top_k=7, stop=("END",), seed=4)
    ((one, two),) = model.answer([request])
    model.answer([ask(enable_thinking=False, top_k=0)])
  assert (one.thinking, one.response, one.finish_reason) == ("2 + 2", "Four.", "stop")
  assert (one.prompt_tokens, one.completion_tokens) == (11, 7) and one == two
  sent, other, plain = server.bodies
  assert sent["path"] == "/v1/chat/completions"
  assert sent["model"] == "some-model" and sent["messages"] == [{"role": "user", "content": "Hi"}]
  assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["top_k"]) == (99, 0.5, 0.9, 7)
  assert sent["stop"] == ["END"] and sent["min_p"] == 0.1
  assert sent["chat_template_kwargs"] == {"enable_thinking": True}
  assert sent["seed"] != other["seed"]  # samples differ, and are the same whenever they are asked for
  assert "seed" not in plain and "top_k" not in plain
  assert plain["chat_template_kwargs"] == {"enable_thinking": False}
  assert server.headers[0]["authorization"] == "Bearer secret"
  usage = model.usage.as_dict()
  assert (usage["replies"], usage["prompt_tokens"], usage["completion_tokens"]) == (3, 33, 21)
  assert (usage["failed"], usage["retries"]) == (0, 0)


@pytest.mark.parametrize(
  ("text", "thinking", "response"),
  [
    ("<think>\na\n</think>\n\nb", "a", "b"),
    ("a\n</think>\nb", "a", "b"),  # opened by the template
    ("b", "", "b"),
    ("<think>\n\n</think>\n\nb", "", "b"),
    ("What does <think> mean?", "", "What does <think> mean?"),
  ],
)
def test_split_thinking(text, thinking, response):
  assert split_thinking(text) == (thinking, response)
  with scripted(Answer(chat(text))) as server:
    ((reply,),) = Endpoint(server.url, "m").answer([ask()])
  assert (reply.thinking, reply.response) == (thinking, response)


def test_thinking_that_was_cut_short():
  with scripted(Answer(chat("<think>\nand so on", "length"))) as server:
    ((reply,),) = Endpoint(server.url, "m").answer([ask()])
  assert (reply.thinking, reply.response, reply.finish_reason) == ("and so on", "", "length")


def test_too_many_requests():
  """The server's wait is kept, in seconds or as a date, but not beyond the longest."""
  with scripted(Answer({}, 429, {"retry-after": "0.4"}), Answer(chat("b"))) as server:
    model = Endpoint(server.url, "m", retries=FAST)
    ((reply,),) = model.answer([ask()])
  assert reply.response == "b" and model.usage.retries == 1
  assert 0.4 <= server.times[1] - server.times[0] < 1.5
  date = "Wed, 21 Oct 2099 07:28:00 GMT"
  with scripted(Answer({}, 429, {"retry-after": date}), Answer(chat("b"))) as server:
    retries = Retries(attempts=3, first_wait=0.01, longest_wait=0.3)
    ((reply,),) = Endpoint(server.url, "m", retries=retries).answer([ask()])
  assert reply.response == "b" and 0.3 <= server.times[1] - server.times[0] < 1.5


@pytest.mark.parametrize(
  "first",
  [
    Answer({"error": "busy"}, 500),
    Answer(b"<html>bad gateway</html>", 502),
    Answer(b'{"choices": [{"mess'),
    Answer({"choices": []}),
    Answer({"choices": [{"message": {"content": 7}}]}),
    Answer([1, 2]),
    Answer(chat("late"), seconds=5.0),
    Answer(chat("cut off"), headers={"content-length": "9999", "connection": "close"}),
  ],
  ids=["500", "502", "cut JSON", "no choices", "no text", "no object", "slow", "connection lost"],
)
def test_what_passes_is_retried(first):
  with scripted(first, Answer(chat("b"))) as server:
    model = Endpoint(server.url, "m", retries=FAST, timeout=2.0)
    ((reply,),) = model.answer([ask()])
  assert (reply.response, reply.finish_reason) == ("b", "stop")
  assert len(server.bodies) == 2 and model.usage.retries == 1


def test_waits_grow():
  """Uniform in the upper half of 1, 2, 4, ... times the first, up to the longest."""
  retries = Retries(first_wait=2.0, longest_wait=10.0)
  for number, longest in enumerate((2, 4, 8, 10, 10), 1):
    waits = [retries.wait(number, None) for _ in range(200)]
    assert longest / 2 <= min(waits) < 0.6 * longest and 0.9 * longest < max(waits) <= longest


def test_gives_up():
  """What fails for good says so, and takes nothing else with it."""

  def answer(body):
    text = body["messages"][0]["content"]
    if text == "long":
      return Answer({"error": {"message": "context length exceeded"}}, 400)
    return Answer({}, 503) if text == "down" else Answer(chat(text))

  with ChatServer(answer) as server:
    model = Endpoint(server.url, "m", retries=FAST)
    a, long, down, b = model.answer([ask("a"), ask("long", num_samples=2), ask("down"), ask("b")])
  assert (a[0].response, b[0].response) == ("a", "b")
  assert [reply.finish_reason for reply in (*long, *down)] == ["error"] * 3
  assert long[0].error == "status 400: context length exceeded"
  assert "status 503" in down[0].error and "last of 3 attempts" in down[0].error
  asked = [body["messages"][0]["content"] for body in server.bodies]
  assert (asked.count("long"), asked.count("down")) == (2, 3)
  assert (model.usage.failed, model.usage.replies) == (3, 2)


def test_a_wrong_key_is_not_tried_a_thousand_times():
  with scripted(Answer({"error": {"message": "invalid key"}}, 401)) as server:
    replies = Endpoint(server.url, "m", concurrency=4, retries=FAST).answer([ask() for _ in range(200)])
  assert {reply.error for (reply,) in replies} == {"status 401: invalid key"}
  assert len(server.bodies) < 20


def test_nothing_listens():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
  ((reply,),) = Endpoint(url, "m", retries=FAST).answer([ask()])
  assert reply.finish_reason == "error" and url in reply.error and "refused" in reply.error


def test_a_server_that_only_keeps_the_connection_alive():
  """Blank lines reset a socket's timeout; an attempt's limit holds all the same."""
  listening = socket.create_server(("127.0.0.1", 0))

  def serve():
    connection, _ = listening.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(1200):
      try:
        connection.sendall(b"\n")
      except OSError:
        break
      time.sleep(0.05)
    connection.close()

  threading.Thread(target=serve, daemon=True).start()
  started = time.monotonic()
  url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
  ((reply,),) = Endpoint(url, "m", retries=Retries(attempts=1), timeout=0.3).answer([ask()])
  listening.close()
  assert reply.error.startswith("no answer within 0.3 s") and time.monotonic() - started < 30


def test_many_at_once_in_order():
  """Eight at a time, no more, also from two threads; replies in the order of requests."""

  def answer(body):
    number = int(body["messages"][0]["content"])
    return Answer(chat(str(number)), seconds=0.02 + 0.02 * (number % 3))  # they do not end in order

  with ChatServer(answer) as server:
    model = Endpoint(server.url, "m", concurrency=8)
    seen: list[tuple[int, int]] = []
    other = threading.Thread(target=lambda: model.answer([ask(str(i)) for i in range(40)]))
    other.start()
    replies = model.answer([ask(str(i)) for i in range(40)], lambda done, total: seen.append((done, total)))
    other.join()
  assert [reply.response for (reply,) in replies] == [str(i) for i in range(40)]
  assert server.most_at_once == 8
  assert seen == [(i, 40) for i in range(1, 41)]


def test_bad_arguments():
  with pytest.raises(ValueError, match="url='localhost:8000'"):
    Endpoint("localhost:8000", "m")
  with pytest.raises(ValueError, match="concurrency=0"):
    Endpoint("http://x", "m", concurrency=0)
  with pytest.raises(ValueError, match="attempts=0"):
    Retries(attempts=0)
