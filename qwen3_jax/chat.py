"""Talks to a model:

  python -m qwen3_jax.chat --checkpoint=DIR [--prompt=TEXT] [--thinking_budget=N] [--no_thinking] [--tools=FILE.py]

The checkpoint is a Hugging Face folder, one of ours, or a stage of a run. Thinking is shown dimmed. With --prompt one
answer is given; without, a conversation: a message that holds /think or /no_think switches thinking from there on,
/system TEXT sets the system prompt, /clear starts anew, /quit or the end of input ends. Ctrl-C stops an answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from qwen3_jax.data.conversation import encode_conversation, thinking_mode
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.loading import load_pretrained
from qwen3_jax.models.transformer import Transformer
from qwen3_jax.rollout.completion import Completion
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import context_length, end_ids, make_engine
from qwen3_jax.rollout.request import Request
from qwen3_jax.rollout.sampling import NOT_THINKING, THINKING
from qwen3_jax.rollout.stream import stream
from qwen3_jax.rollout.tool_calls import ToolCallError, parse_tool_calls
from qwen3_jax.rollout.tools_file import Tool, load_tools
from qwen3_jax.safetensors_io import WeightsError

_MOST_TOOL_ROUNDS = 8  # answers that call tools before one must not


@dataclasses.dataclass
class Chat:
  """A conversation and the model that answers."""

  model: Transformer
  tokenizer: Tokenizer
  console: Console
  thinking: bool = True  # unless a message switches
  thinking_budget: int | None = None
  max_new_tokens: int = 2048
  seed: int | None = None
  sampling: dict[str, Any] = dataclasses.field(default_factory=dict)  # what differs from the report's
  tools: Sequence[Tool] = ()
  tool_seconds: float = 30.0
  messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    self.context = context_length(self.model.config)
    self.engine = make_engine(self.model, self.tokenizer, EngineSettings(slots=1, max_length=self.context, steps=1))

  def say(self, text: str) -> Completion:
    """Adds the user's message and streams the answer, after what tools it calls.

    Raises ValueError, and leaves the conversation as it was, if it does not fit the context.
    """
    before = len(self.messages)
    self.messages.append({"role": "user", "content": text})
    try:
      for _ in range(_MOST_TOOL_ROUNDS):
        answer = self._answer()
        if not self._call_tools(answer):
          break
      return answer
    except BaseException:
      del self.messages[before:]
      raise

  def _answer(self) -> Completion:
    thinks = thinking_mode(self.messages, self.thinking)
    schemas = [tool.schema for tool in self.tools] or None
    prompt = encode_conversation(self.tokenizer, self.messages, schemas, thinks, add_generation_prompt=True).ids
    request = Request(
      prompt,
      self.max_new_tokens,
      dataclasses.replace(THINKING if thinks else NOT_THINKING, **self.sampling),
      stop_ids=end_ids(self.tokenizer),
      seed=self.seed,
      thinking_budget=self.thinking_budget if thinks else None,
    )
    shown = None
    for piece in stream(self.engine, self.tokenizer, request):
      if isinstance(piece, Completion):
        answer = piece
        break
      if shown == "thinking" and piece.kind == "response":
        self.console.print("\n")
      style = "dim italic" if piece.kind == "thinking" else None
      self.console.print(piece.text, end="", style=style, markup=False, highlight=False, soft_wrap=True)
      shown = piece.kind
    self.console.print()
    endings = {"length": "max_new_tokens is reached", "context": "the context is full", "not_finite": "not finite"}
    if answer.finish_reason in endings:
      self.console.print(f"[{endings[answer.finish_reason]}]", style="yellow", markup=False)
    return answer

  def _call_tools(self, answer: Completion) -> bool:
    """Adds the answer and what the tools that it calls give; whether it calls any."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.response}
    if answer.thinking_end != "none":
      message["reasoning_content"] = answer.thinking
    calls = parse_tool_calls(answer.response, self.tools).calls if self.tools else []
    self.messages.append(message)
    for call in calls:
      result = call.message if isinstance(call, ToolCallError) else call.run(self.tools, self.tool_seconds)
      self.messages.append({"role": "tool", "content": result})
      self.console.print(f"  tool: {result}", style="cyan", markup=False)
    return bool(calls)


def converse(chat: Chat) -> None:
  """Reads messages until the end of input."""
  while True:
    try:
      text = chat.console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
      chat.console.print()
      return
    command, _, rest = text.partition(" ")
    if command == "/quit":
      return
    if command == "/clear":
      chat.messages = [m for m in chat.messages[:1] if m["role"] == "system"]
    elif command == "/system":
      chat.messages = [{"role": "system", "content": rest}] if rest else []
    elif text in ("/think", "/no_think"):
      chat.thinking = text == "/think"
    elif text:
      try:
        chat.say(text)
      except KeyboardInterrupt:
        chat.console.print("\n[stopped]", style="yellow", markup=False)
      except ValueError as error:
        chat.console.print(f"error: {error}", style="red", markup=False)


def load(checkpoint: Path, tokenizer: Path | None, dtype: str) -> tuple[Transformer, Tokenizer]:
  """Raises ValueError if there is no tokenizer, or one that does not fit."""
  model, own = load_pretrained(checkpoint, dtype)
  found = own if tokenizer is None else Tokenizer.from_pretrained(tokenizer)
  if found is None:
    raise ValueError(f"{checkpoint} has no tokenizer; name one with --tokenizer")
  if found.vocab_size > model.config.vocab_size:
    raise ValueError(f"the tokenizer has {found.vocab_size} ids, the model only {model.config.vocab_size}")
  return model, found


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    prog="python -m qwen3_jax.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the model")
  parser.add_argument("--tokenizer", type=Path, help="folder or file; the checkpoint's own unless given")
  parser.add_argument("--prompt", help="one message; prints the answer and ends")
  parser.add_argument("--system", help="system prompt")
  parser.add_argument("--tools", type=Path, help="Python file whose functions the model may call")
  parser.add_argument("--no_thinking", action="store_true", help="answer without thinking")
  parser.add_argument("--thinking_budget", type=int, metavar="N", help="tokens of thinking before it must answer")
  parser.add_argument("--max_new_tokens", type=int, default=2048, help="of an answer (default %(default)s)")
  for name in ("temperature", "top_p", "min_p", "presence_penalty"):
    parser.add_argument(f"--{name}", type=float, help="the report's for the mode unless given")
  parser.add_argument("--top_k", type=int, help="likewise")
  parser.add_argument("--seed", type=int, help="the same answers each time")
  parser.add_argument("--dtype", default="bfloat16", help="of the computation (default %(default)s)")
  arguments = parser.parse_args(argv)
  names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty")
  try:
    sampling = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    dataclasses.replace(THINKING, **sampling)  # says what is wrong before the model is loaded
    tools = load_tools(arguments.tools) if arguments.tools else ()
    model, tokenizer = load(arguments.checkpoint, arguments.tokenizer, arguments.dtype)
    chat = Chat(
      model,
      tokenizer,
      Console(highlight=False),
      thinking=not arguments.no_thinking,
      thinking_budget=arguments.thinking_budget,
      max_new_tokens=arguments.max_new_tokens,
      seed=arguments.seed,
      sampling=sampling,
      tools=tools,
    )
    if arguments.system:
      chat.messages.append({"role": "system", "content": arguments.system})
    if arguments.prompt is None:
      converse(chat)
    else:
      chat.say(arguments.prompt)
  except (ValueError, OSError, WeightsError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
