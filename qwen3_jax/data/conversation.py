"""Conversations as token ids, with a loss mask over what the assistant wrote."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from qwen3_jax.data import chat_template
from qwen3_jax.data.tokenizer import Tokenizer

LossTurns = Literal["all", "last"]

_SWITCH = re.compile(r"(?<![\w/])/(no_think|think)(?![\w/])")


class Encoded(NamedTuple):
  """A conversation in tokens."""

  ids: list[int]
  loss_mask: list[bool]  # True for the tokens of assistant turns, <|im_end|> included, headers not


def thinking_mode(messages: Sequence[Mapping[str, Any]], default: bool = True) -> bool:
  """Whether the next answer should think: the last /think or /no_think of a user or system message wins."""
  mode = default
  for message in messages:
    if message.get("role") in ("user", "system"):
      for match in _SWITCH.finditer(message.get("content") or ""):
        mode = match.group(1) == "think"
  return mode


def encode_conversation(
  tokenizer: Tokenizer,
  messages: Sequence[Mapping[str, Any]],
  tools: Sequence[Mapping[str, Any]] | None = None,
  enable_thinking: bool = True,
  add_generation_prompt: bool = False,
  loss: LossTurns = "all",
) -> Encoded:
  """Token ids of the conversation and the loss mask; the ids spell `apply_chat_template` with the same arguments.

  `loss` says which assistant turns are trained on: all, or the last alone, for templates leave the thinking out of
  earlier ones.

  No text can forge a turn: control tokens (`<|im_end|>`, ...) that occur inside messages, and every added token inside
  tool results and tool descriptions, are encoded as plain text. So the ids equal `encode(apply_chat_template(...))`
  unless the conversation holds such tokens. Tags that users and assistants write (`<think>`, `<tool_call>`) stay as
  tokens.

  Works with any template that opens each assistant turn with the header of its generation prompt and ends it with a
  control token; raises ValueError for others. A token that straddles the end of a header (a message that starts with a
  line break) is not trained on, for no header ends with it at inference.
  """
  if loss not in get_args(LossTurns):
    raise ValueError(f"loss={loss!r}: expected {' or '.join(map(repr, get_args(LossTurns)))}, the turns trained on")
  messages = chat_template.check_messages(messages)
  mark = _unused_character(messages, tools)
  marked_messages = [_mark_message(message, tokenizer, mark) for message in messages]
  marked_tools = _mark(tools, tokenizer.added_token_pattern, mark)
  text = tokenizer.apply_chat_template(marked_messages, marked_tools, enable_thinking, add_generation_prompt)
  if mark in text:
    unmarked = tokenizer.apply_chat_template(messages, tools, enable_thinking, add_generation_prompt)
    if text.replace(mark, "") != unmarked:
      raise ValueError(
        "the chat template reads or changes the control tokens that the messages hold; remove them first"
      )

  header = _assistant_header(tokenizer, json.dumps(marked_tools))
  spans = _assistant_spans(tokenizer, text, header)
  turns = sum(message["role"] == "assistant" for message in messages) + add_generation_prompt
  if len(spans) != turns:
    raise ValueError(
      f"the chat template wrote {len(spans)} turns that open with {header!r}, expected {turns}: no loss mask"
    )
  if add_generation_prompt:
    spans.pop()
  if any(end is None for _, end in spans):
    raise ValueError("the chat template does not end assistant turns with a control token: no loss mask")
  if loss == "last":
    spans = spans[-1:]
  return _encode_spans(tokenizer, text, [(start, end) for start, end in spans if end is not None], mark)


def _unused_character(*values: Any) -> str:
  """A private-use character that occurs nowhere in `values`."""
  used = set("".join(_strings(values)))
  return next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)


def _strings(value: Any) -> list[str]:
  if isinstance(value, str):
    return [value]
  if isinstance(value, Mapping):
    return [text for item in value.items() for text in _strings(item)]
  if isinstance(value, list | tuple):
    return [text for item in value for text in _strings(item)]
  return []


def _mark_message(message: Mapping[str, Any], tokenizer: Tokenizer, mark: str) -> dict[str, Any]:
  from_tool = message["role"] == "tool"
  pattern = tokenizer.added_token_pattern if from_tool else tokenizer.special_token_pattern
  return {key: value if key == "role" else _mark(value, pattern, mark) for key, value in message.items()}


def _mark(value: Any, pattern: re.Pattern[str], mark: str) -> Any:
  """`value` with `mark` after the first character of every token that `pattern` finds, so that it is one no more."""
  if isinstance(value, str):
    return pattern.sub(lambda match: match.group()[0] + mark + match.group()[1:], value)
  if isinstance(value, Mapping):
    return {_mark(key, pattern, mark): _mark(item, pattern, mark) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_mark(item, pattern, mark) for item in value]
  return value


@functools.lru_cache(maxsize=16)
def _assistant_header(tokenizer: Tokenizer, tools_json: str) -> str:
  """What opens an assistant turn: shared by the generation prompt and by a finished turn."""
  tools = json.loads(tools_json)
  question = {"role": "user", "content": "question"}
  before = tokenizer.apply_chat_template([question], tools, add_generation_prompt=False)
  prompt = tokenizer.apply_chat_template([question], tools, add_generation_prompt=True)
  turns = [question, {"role": "assistant", "content": "\U000f0000"}, question]
  finished = tokenizer.apply_chat_template(turns, tools, add_generation_prompt=False)
  if not (prompt.startswith(before) and finished.startswith(before)):
    raise ValueError("the chat template rewrites a conversation when a turn is added: no loss mask")
  pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt[len(before) :], finished[len(before) :]))
  header = "".join(character for character, _ in pairs)
  if not header:
    raise ValueError("the chat template opens assistant turns otherwise than its generation prompt: no loss mask")
  return header


def _assistant_spans(tokenizer: Tokenizer, text: str, header: str) -> list[tuple[int, int | None]]:
  """(start, end) in `text` of what follows each header, through the next control token; end is None if none follows."""
  spans: list[tuple[int, int | None]] = []
  position = text.find(header)
  while position >= 0:
    start = position + len(header)
    token = tokenizer.special_token_pattern.search(text, start)
    spans.append((start, token.end() if token else None))
    position = text.find(header, token.end() if token else len(text))
  return spans


def _encode_spans(tokenizer: Tokenizer, text: str, spans: list[tuple[int, int]], mark: str) -> Encoded:
  """Ids of `text` without its marks; a token is in the loss if it lies within a span."""
  ids: list[int] = []
  loss_mask: list[bool] = []
  remaining = iter([*spans, (len(text) + 1, len(text) + 1)])
  start, end = next(remaining)

  def add_piece(piece_start: int, piece_end: int) -> None:
    piece_ids = tokenizer.encode(text[piece_start:piece_end].replace(mark, ""), allow_special=False)
    if piece_end <= start:
      ids.extend(piece_ids)
      loss_mask.extend([False] * len(piece_ids))
      return
    # A span starts inside a piece (after its header) and ends at an added token.
    outside = text[piece_start : max(start, piece_start)].replace(mark, "")
    cut = sum(len(tokenizer.token_bytes(id)) for id in tokenizer.encode(outside, allow_special=False))
    offset = 0
    for id in piece_ids:
      ids.append(id)
      loss_mask.append(offset >= cut)
      offset += len(tokenizer.token_bytes(id))

  position = 0
  for match in tokenizer.added_token_pattern.finditer(text):
    add_piece(position, match.start())
    ids.append(tokenizer.special_tokens[match.group()])
    loss_mask.append(start <= match.start())
    position = match.end()
    if position >= end:
      start, end = next(remaining)
  add_piece(position, len(text))
  return Encoded(ids, loss_mask)
