"""`python -m qwen3_jax.chat` as a user runs it, and a conversation with a model whose answers are scripted."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from qwen3_jax.chat import Chat, converse
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.rollout.tools_file import load_tools
from tests import fast_compiling
from tests.rollout.chain_model import CONFIG, chain, chain_model
from tests.rollout.conftest import tokenizer  # noqa: F401

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "dense"


def run_chat(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
  flags = {"XLA_FLAGS": fast_compiling.FLAGS}
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | flags
  command = [sys.executable, "-m", "qwen3_jax.chat", *arguments]
  return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, timeout=600)


def test_one_prompt_on_a_checkpoint(tokenizer, tmp_path):  # noqa: F811
  """From a Hugging Face folder, with a seed: the same answer twice, another one without."""
  tokenizer.save(tmp_path)
  options = (f"--checkpoint={GOLDEN}", f"--tokenizer={tmp_path}", "--prompt=Hello", "--max_new_tokens=24")
  first, second = (run_chat(*options, "--seed=1") for _ in range(2))
  assert first.returncode == 0, first.stderr
  assert len(first.stdout.strip()) > 10
  assert first.stdout == second.stdout
  assert "Traceback" not in first.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((f"--checkpoint={GOLDEN}",), "has no tokenizer; name one with --tokenizer"),
    (("--checkpoint=/nowhere",), "/nowhere: no such folder"),
    ((f"--checkpoint={GOLDEN}", "--top_p=2"), "top_p=2.0, expected a number in (0, 1]"),
    ((f"--checkpoint={GOLDEN}", "--tools=/nowhere.py"), "/nowhere.py"),
  ],
)
def test_errors_are_one_line(arguments, message):
  ended = run_chat("--prompt=x", *arguments)
  assert ended.returncode == 1
  assert ended.stderr.startswith("error: ") and message in ended.stderr
  assert len(ended.stderr.splitlines()) == 1


@pytest.fixture
def chat(tokenizer):  # noqa: F811
  """Thinks three tokens and answers two; without thinking it answers the two."""
  words = [id for id in range(400, 512) if tokenizer.token_bytes(id).strip().isalpha()][:5]
  question = [{"role": "user", "content": "Hi"}]
  last = lambda thinks: encode_conversation(tokenizer, question, None, thinks, add_generation_prompt=True).ids[-1]
  script = chain(tokenizer.think_start_id, *words[:3], tokenizer.think_end_id, *words[3:], tokenizer.im_end_id)
  script |= {last(True): tokenizer.think_start_id, last(False): words[3]}
  script[ThinkingTokens.of(tokenizer).sentence[-1]] = words[3]
  output = io.StringIO()
  console = Console(file=output, force_terminal=True, width=200, highlight=False)
  model = from_parameters(CONFIG, chain_model(script))
  chat = Chat(model, tokenizer, console, sampling={"temperature": 0.0})
  return chat, output, [tokenizer.decode([word]) for word in words]


def test_thinking_is_dimmed_and_apart(chat):
  chat, output, words = chat
  answer = chat.say("Hi")
  assert (answer.thinking, answer.response) == ("".join(words[:3]), "".join(words[3:]))
  shown = output.getvalue()
  assert "\x1b[2;3m" in shown.split(words[3])[0]
  assert shown.index(words[0]) < shown.index(words[3])
  assert chat.messages[-1] == {
    "role": "assistant",
    "content": answer.response,
    "reasoning_content": answer.thinking,
  }


def test_a_conversation(chat, monkeypatch):
  """Switches in messages and commands; what does not fit leaves the conversation as it was."""
  chat, output, words = chat
  lines = iter(["/system Be brief.", "Hi", "Hi /no_think", "Hi", "/clear", "Hi", "word " * 900, "/quit"])
  monkeypatch.setattr(chat.console, "input", lambda *_: next(lines))
  answers = []
  original = chat.say
  monkeypatch.setattr(chat, "say", lambda text: answers.append(original(text)) or answers[-1])
  converse(chat)
  assert [bool(answer.thinking) for answer in answers] == [True, False, False, True]
  assert all(answer.response == "".join(words[3:]) for answer in answers)
  assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
  assert "leaves no room in a context of 512" in output.getvalue()


def test_a_budget(chat):
  chat, output, words = chat
  chat.thinking_budget = 1
  answer = chat.say("Hi")
  assert answer.thinking_end == "budget"
  assert answer.thinking.startswith(words[0]) and words[1] not in answer.thinking
  shown = re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())
  assert shown.split() == f"{answer.thinking} {answer.response}".split()
  assert "Considering the limited time by the user" in shown


def test_tools_are_called(chat, tmp_path, monkeypatch):
  """What an answer calls is run, shown, and answered to."""
  chat, output, _ = chat
  file = tmp_path / "tools.py"
  file.write_text(
    'def add(a: int, b: int) -> int:\n  """Adds.\n\n  Args:\n    a: one.\n    b: other.\n  """\n  return a + b\n'
  )
  chat.tools = load_tools(file)
  original = chat._answer
  calls = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 40}}\n</tool_call>'
  rounds = []

  def answer():
    real = original()
    rounds.append([message["role"] for message in chat.messages])
    return dataclasses.replace(real, response=calls) if len(rounds) == 1 else real

  monkeypatch.setattr(chat, "_answer", answer)
  chat.say("Hi")
  assert rounds == [["user"], ["user", "assistant", "tool"]]
  assert chat.messages[2] == {"role": "tool", "content": "42"}
  assert "tool: 42" in output.getvalue()
