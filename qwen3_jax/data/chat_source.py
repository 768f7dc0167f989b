"""Conversations as documents: one a line of JSON, for supervised fine-tuning.

A line is {"messages": [{"role", "content", "reasoning_content"?, ...}, ...], "tools"?: [...], "loss"?: "all" or "last",
"domain"?, "language"?}. `loss` says which of the assistant's turns are trained on: all, unless it says "last". The chat
template writes no think block, nor an empty one, in turns before the user's last question, so a dialog whose earlier
turns should have one must say "last", and have a line for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3_jax.data.sources import Document, JsonLines, SourceError, record_labels


class ChatLines(JsonLines):
  """As `JsonLines`; a document's text is what its messages say; `prepare` encodes the conversation."""

  def document(self, record: Any, id: str) -> Document:
    if not isinstance(record, Mapping) or not isinstance(record.get("messages"), list):
      raise SourceError(f"{id}: expected an object with a list 'messages'")
    conversation = {"messages": record["messages"], "tools": record.get("tools"), "loss": record.get("loss", "all")}
    fields = ("reasoning_content", "content")
    parts = [message.get(field) for message in record["messages"] if isinstance(message, Mapping) for field in fields]
    text = "\n".join(part for part in parts if isinstance(part, str) and part)
    return Document(text, **record_labels(record, id), conversation=conversation)
