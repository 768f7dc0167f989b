"""StreamDecoder: text from tokens as they come."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from qwen3_jax.data.tokenizer import Tokenizer


class StreamDecoder:
  """Decodes one token at a time and never emits part of a character.

  What `push` and `finish` return, joined, is `tokenizer.decode` of the same ids. Time and memory per token are
  constant: at most the three bytes of an unfinished character are kept.
  """

  def __init__(self, tokenizer: Tokenizer, skip_special: bool = False):
    self._tokenizer = tokenizer
    self._skip_special = skip_special
    self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
    self._run_starts = True  # nothing yet since the start or the last added token

  def push(self, id: int) -> str:
    """The text that `id` completes, "" while a character is unfinished. Raises ValueError for an id without a token."""
    token, self._run_starts = self._tokenizer._visible_bytes(id, self._run_starts, self._skip_special)
    return self._bytes.decode(token)

  def finish(self) -> str:
    """The rest: U+FFFD if the tokens ended inside a character, else "". The decoder is then as new."""
    self._run_starts = True
    rest = self._bytes.decode(b"", final=True)
    self._bytes.reset()
    return rest
