"""Tokenizer: text to token ids and back, over three vocabulary formats."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.data import chat_template
from qwen3_jax.data.stream_decoder import StreamDecoder
from qwen3_jax.data.tokenizer_backends import BACKENDS, Backend

_FILE_NAMES = tuple(backend.file_name for backend in BACKENDS.values())


class Tokenizer:
  """Token ids of a text.

  A text is cut at the added tokens (`<|im_end|>`, `<think>`, ...), and the pieces between them are encoded by the
  vocabulary. Unpaired surrogates cannot be written in UTF-8: each is read as U+FFFD.

  A tokenizer can be pickled: it carries the bytes of its vocabulary file.
  """

  def __init__(self, backend: Backend, config: Mapping[str, Any] | None = None):
    """Use `from_pretrained`. `config` is what tokenizer_config.json holds, with the chat template if there is one."""
    self._backend = backend
    self._config = dict(config or {})
    self._added = backend.added_tokens
    self._special_ids = frozenset(token.id for token in self._added.values() if token.special)
    self._added_ids = frozenset(token.id for token in self._added.values())
    # Longest first: where one token begins with another, the longer one is meant.
    names = sorted(self._added, key=len, reverse=True)
    self.added_token_pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    special_names = [name for name in names if self._added[name].special]
    self.special_token_pattern = re.compile("|".join(map(re.escape, special_names)) or r"(?!)")

  @classmethod
  def from_pretrained(cls, path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a folder or a file: tokenizer.json, qwen.tiktoken or a SentencePiece .model (looked for in this order).

    The chat template is that of chat_template.jinja or tokenizer_config.json beside the vocabulary, else Qwen3's.
    Raises FileNotFoundError with what was looked for, ValueError for a damaged or unsupported file.
    """
    path = Path(path)
    if path.is_dir():
      found = [path / name for name in _FILE_NAMES if (path / name).is_file()]
      if not found:
        present = ", ".join(sorted(entry.name for entry in path.iterdir())[:20])
        raise FileNotFoundError(
          f"no tokenizer in {path}: looked for {', '.join(_FILE_NAMES)}; the folder holds {present or 'nothing'}. "
          "The released vocabulary is tokenizer.json of any Qwen3 checkpoint, or dashscope/resources/qwen.tiktoken "
          "in the wheel of dashscope 2.0.2 on PyPI."
        )
      path = found[0]
    elif not path.is_file():
      raise FileNotFoundError(
        f"no tokenizer at {path}: expected a folder with {' or '.join(_FILE_NAMES)}, or such a file"
      )
    if path.suffix not in BACKENDS:
      raise ValueError(f"{path}: unknown kind of tokenizer, expected a name ending in {', '.join(BACKENDS)}")
    backend = BACKENDS[path.suffix](path.read_bytes(), str(path))
    return cls(backend, _read_config(path.parent))

  def __reduce__(self) -> tuple[Any, ...]:
    return _restore, (type(self._backend), self._backend.data, self._config)

  # Encoding and decoding

  def encode(self, text: str, *, allow_special: bool = True) -> list[int]:
    """Ids of `text`. With `allow_special=False` the names of added tokens are plain text: for text from outside."""
    return self.encode_batch([text], allow_special=allow_special)[0]

  def encode_batch(self, texts: Iterable[str], *, allow_special: bool = True) -> list[list[int]]:
    """`encode` of each text, on all cores."""
    pieces: list[str] = []  # plain pieces of all texts
    layouts: list[list[int | None]] = []  # per text: the id of an added token, or None for the next plain piece
    for text in texts:
      text = _valid_unicode(text)
      layout: list[int | None] = []
      for piece, id in self._cut(text) if allow_special else [(text, None)]:
        if piece:
          pieces.append(piece)
          layout.append(None)
        if id is not None:
          layout.append(id)
      layouts.append(layout)
    encoded = iter(self._backend.encode_batch(pieces) if pieces else [])
    batch = []
    for layout in layouts:
      ids: list[int] = []
      for id in layout:
        if id is None:
          ids += next(encoded)
        else:
          ids.append(id)
      batch.append(ids)
    return batch

  def _cut(self, text: str) -> Iterable[tuple[str, int | None]]:
    """(plain text, id of the added token after it); the last id is None."""
    end = 0
    for match in self.added_token_pattern.finditer(text):
      yield text[end : match.start()], self._added[match.group()].id
      end = match.end()
    yield text[end:], None

  def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
    """Text of `ids`; `skip_special` leaves control tokens out (tags such as <think> stay).

    Bytes that are no UTF-8 become U+FFFD. Raises ValueError for an id that has no token.
    """
    tokens = []
    run_starts = True
    for id in ids:
      token, run_starts = self._visible_bytes(id, run_starts, skip_special)
      tokens.append(token)
    return b"".join(tokens).decode("utf-8", errors="replace")

  def stream(self, skip_special: bool = False) -> StreamDecoder:
    """A decoder for tokens that come one at a time."""
    return StreamDecoder(self, skip_special)

  def token_bytes(self, id: int) -> bytes:
    """UTF-8 bytes of a token, perhaps part of a character. Raises ValueError for an id that has no token."""
    table = self._backend.token_bytes
    try:
      index = operator.index(id)
    except TypeError:
      raise ValueError(f"token id {id!r} is not an integer") from None
    token = table[index] if 0 <= index < len(table) else None
    if token is None:
      raise ValueError(f"token id {index} has no token: the vocabulary holds 0..{len(table) - 1}")
    return token

  def _visible_bytes(self, id: int, run_starts: bool, skip_special: bool) -> tuple[bytes, bool]:
    """What `id` adds to the text, and whether a run of plain text starts after it."""
    token = self.token_bytes(id)
    if id in self._added_ids:
      return (b"" if skip_special and id in self._special_ids else token), True
    if run_starts and self._backend.strips_leading_space:
      token = token.removeprefix(b" ")
    return token, False

  # Vocabulary

  @property
  def vocab_size(self) -> int:
    """Number of ids. A model's embedding may have more rows."""
    return len(self._backend.token_bytes)

  @functools.cached_property
  def special_tokens(self) -> dict[str, int]:
    """Every added token and its id, tags such as <think> included."""
    return {name: token.id for name, token in self._added.items()}

  def is_special(self, id: int) -> bool:
    """Whether `id` is a control token, which `skip_special` leaves out."""
    return id in self._special_ids

  def token_to_id(self, token: str) -> int:
    """Id of an added token or of the ordinary token with exactly this text. Raises ValueError if there is none."""
    if token in self._added:
      return self._added[token].id
    id = self._ids_by_bytes.get(token.encode("utf-8", errors="replace"))
    if id is None:
      raise ValueError(f"no token {token!r} in the vocabulary" + nearest.clause(token, self._added))
    return id

  @functools.cached_property
  def _ids_by_bytes(self) -> dict[bytes, int]:
    table = self._backend.token_bytes
    # The lowest id wins; SentencePiece has a byte piece and a character piece for the same text.
    return {token: id for id, token in reversed(list(enumerate(table))) if token is not None}

  @property
  def eos_id(self) -> int:
    """The end of a document: <|endoftext|>, or </s> in a vocabulary that has only that. Turns end with `im_end_id`."""
    if "<|endoftext|>" not in self._added and "</s>" in self._added:
      return self._added["</s>"].id
    return self.token_to_id("<|endoftext|>")

  @property
  def pad_id(self) -> int:
    """Padding is the document end, as in the released models."""
    return self.eos_id

  @property
  def im_start_id(self) -> int:
    return self.token_to_id("<|im_start|>")

  @property
  def im_end_id(self) -> int:
    return self.token_to_id("<|im_end|>")

  @property
  def think_start_id(self) -> int:
    return self.token_to_id("<think>")

  @property
  def think_end_id(self) -> int:
    return self.token_to_id("</think>")

  @functools.cached_property
  def fingerprint(self) -> str:
    """Changes whenever the ids of some text may change."""
    return hashlib.sha256(self._backend.file_name.encode() + b"\0" + self._backend.data).hexdigest()[:16]

  # Chat

  def apply_chat_template(
    self,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool = True,
    add_generation_prompt: bool = True,
  ) -> str:
    """The conversation as one text, by the checkpoint's own template if it has one (see chat_template.render).

    Text from outside may hold control tokens: `conversation.encode_conversation` encodes it so that it forges no turn.
    """
    return chat_template.render(
      messages,
      tools,
      enable_thinking=enable_thinking,
      add_generation_prompt=add_generation_prompt,
      template=chat_template.choose(self._config.get("chat_template"), bool(tools)),
      variables=_named_tokens(self._config),
    )

  # Saving

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a folder that `from_pretrained` reads: the vocabulary file unchanged and tokenizer_config.json."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"chat_template": chat_template.QWEN3_TEMPLATE, **self._config}
    if "<|endoftext|>" in self._added:
      config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **config}
    _write(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2).encode())
    _write(folder / self._backend.file_name, self._backend.data)
    # Files of another tokenizer would be read first.
    for name in {*_FILE_NAMES, chat_template.FILE_NAME} - {self._backend.file_name}:
      (folder / name).unlink(missing_ok=True)


def _restore(backend: type[Any], data: bytes, config: dict[str, Any]) -> Tokenizer:
  return Tokenizer(backend(data, backend.file_name), config)


def _valid_unicode(text: str) -> str:
  """`text` with surrogate pairs joined and unpaired surrogates replaced by U+FFFD."""
  if not isinstance(text, str):
    raise TypeError(f"expected a str to encode, found {type(text).__name__}")
  try:
    text.encode()
  except UnicodeEncodeError:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
  return text


def _read_config(folder: Path) -> dict[str, Any]:
  """tokenizer_config.json, with chat_template.jinja as its chat template if that file exists."""
  config: dict[str, Any] = {}
  file = folder / "tokenizer_config.json"
  if file.is_file():
    try:
      config = json.loads(file.read_bytes())
      if not isinstance(config, dict):
        raise ValueError(f"expected an object, found {type(config).__name__}")
    except ValueError as error:
      raise ValueError(f"{file}: not valid JSON ({error})") from None
  template = folder / chat_template.FILE_NAME
  if template.is_file():
    config["chat_template"] = template.read_text(encoding="utf-8")
  return config


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
  """bos_token, eos_token, ...: what a checkpoint's template may refer to."""
  names = {}
  for key, value in config.items():
    value = value.get("content") if isinstance(value, dict) else value
    if key.endswith("_token") and isinstance(value, str):
      names[key] = value
  return names


def _write(path: Path, data: bytes) -> None:
  """Writes a whole file or none."""
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    Path(temporary).unlink(missing_ok=True)
    raise
