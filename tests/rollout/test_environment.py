"""Environments that run tools: replies, limits, rewards."""

import functools
import json
import subprocess
import sys
import threading
import time

import pytest

from qwen3_jax.data.chat_template import render
from qwen3_jax.rollout.environment import Action, ToolEnvironment, environments_of
from qwen3_jax.rollout.tools_file import Tool

START = [{"role": "system", "content": "Use tools."}, {"role": "user", "content": "What is 1 + 2?"}]


def add(a: int, b: int) -> int:
  """Adds."""
  return a + b


def fail(text: str) -> None:
  """Fails."""
  raise ValueError(text)


def sleep(seconds: float) -> str:
  """Sleeps."""
  time.sleep(seconds)
  return "slept"


TOOLS = [Tool.of(add), Tool.of(fail), Tool.of(sleep)]


def answer(*calls: tuple[str, dict], text: str = "") -> Action:
  blocks = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
  return Action(text + "".join(f"<tool_call>\n{block}\n</tool_call>\n" for block in blocks), "I think.")


def test_conversation():
  environment = ToolEnvironment(START, TOOLS, lambda messages: float(messages[-1]["content"] == "3"))
  observation = environment.reset()
  assert observation.messages == START
  assert observation.tools == [tool.schema for tool in TOOLS]
  calls = answer(("add", {"a": 1, "b": 2}), ("fail", {"text": "no"}), ("ad", {}), text="Let me see.\n")
  step = environment.step(calls)
  assert [message["role"] for message in step.messages] == ["tool"] * 3
  assert [message["content"] for message in step.messages] == [
    "3",
    "Error: fail raised ValueError: no",
    "Error: no tool is named \"ad\", expected one of: add, fail, sleep; did you mean 'add'?",
  ]
  assert (step.reward, step.done, step.info) == (0.0, False, {"tool_calls": 3, "tool_errors": 2})
  last = environment.step(Action("3"))
  assert (last.reward, last.done, last.info["max_turns"]) == (1.0, True, False)
  assert environment.messages == [*START, calls.message, *step.messages, {"role": "assistant", "content": "3"}]
  assert "<tool_response>\n3\n</tool_response>" in render(environment.messages, observation.tools)
  assert environment.reset().messages == START  # anew
  assert environment.step(Action("4")).reward == 0.0


def test_broken_calls_do_not_end_it():
  environment = ToolEnvironment(START, TOOLS)
  environment.reset()
  for text in ("<tool_call>\n{", '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'):
    step = environment.step(Action(text))
    assert not step.done
    (message,) = step.messages
    assert message["content"].startswith("Error: ")
    assert step.info == {"tool_calls": 1, "tool_errors": 1}


def test_a_limit_of_turns():
  """The last answer's calls are made, and the reward sees them."""
  environment = ToolEnvironment(START, TOOLS, lambda messages: float(messages[-1]["content"]), max_turns=2)
  environment.reset()
  assert not environment.step(answer(("add", {"a": 1, "b": 1}))).done
  step = environment.step(answer(("add", {"a": 2, "b": 2})))
  assert (step.done, step.reward, step.info["max_turns"]) == (True, 4.0, True)


def test_environments_share_nothing():
  factories = [functools.partial(ToolEnvironment, START, TOOLS, max_turns=n) for n in (1, 2)]
  made = environments_of(factories, 3)
  assert len({id(environment) for environment in made}) == 6
  observations = [environment.reset() for environment in made]
  observations[0].messages[0]["content"] = "changed"
  assert made[0].reset().messages == made[1].reset().messages == START
  done = [environment.step(answer(("add", {"a": 1, "b": 1}))).done for environment in made]
  assert done == [True] * 3 + [False] * 3


def test_a_call_that_hangs_leaves_the_others_alone():
  environment = ToolEnvironment(START, TOOLS, call_seconds=0.2)
  environment.reset()
  start = time.monotonic()
  step = environment.step(answer(("sleep", {"seconds": 600.0}), ("add", {"a": 1, "b": 2}), ("sleep", {"seconds": 0.0})))
  assert time.monotonic() - start < 60
  texts = [message["content"] for message in step.messages]
  assert texts == ["Error: sleep gave no result within 0.2 s and was abandoned", "3", "slept"]
  assert step.info["tool_errors"] == 1


def test_environments_work_at_once():
  """Each waits for all others: one after the other they would never end."""
  barrier = threading.Barrier(4)

  def meet() -> str:
    """Waits."""
    barrier.wait(10)
    return "met"

  made = environments_of([functools.partial(ToolEnvironment, START, [Tool.of(meet)])], 4)
  results = []
  run = lambda environment: (environment.reset(), results.append(environment.step(answer(("meet", {})))))
  threads = [threading.Thread(target=run, args=[environment]) for environment in made]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [step.messages[0]["content"] for step in results] == ["met"] * 4


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)"])
def test_what_hangs_does_not_hold_up_the_end_of_the_process(end):
  source = f"""
import threading
from qwen3_jax.rollout.tools_file import Tool

def hang() -> None:
  "Hangs."
  threading.Event().wait()

print(Tool.of(hang).call({{}}, 0.1).text)
{end}
"""
  process = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=30)
  assert process.stdout == "Error: hang gave no result within 0.1 s and was abandoned\n"
  assert process.returncode == (3 if end else 0), process.stderr
