"""Conversations as documents: one a line of JSON, for supervised fine-tuning.

A line is {"messages": [{"role", "content", "reasoning_content"?, ...}, ...], "tools"?: [...], "domain"?, "language"?}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qwen3_jax.data.sources import Document, JsonLines, SourceError, record_labels


class ChatLines(JsonLines):
  """As `JsonLines`; a document's text is its conversation as JSON, which `prepare` encodes with the chat template."""

  def document(self, record: Any, id: str) -> Document:
    if not isinstance(record, Mapping) or not isinstance(record.get("messages"), list):
      raise SourceError(f"{id}: expected an object with a list 'messages'")
    conversation = {"messages": record["messages"], "tools": record.get("tools")}
    text = json.dumps(conversation, ensure_ascii=False)
    return Document(text, **record_labels(record, id), conversation=conversation)
