"""The three vocabulary formats.

A backend encodes ordinary text only: `Tokenizer` cuts a text at its added tokens first.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import sentencepiece
import tiktoken
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2  # its messages are made at run time, unseen by mypy

# The 26 tokens that follow the ranks of a Qwen vocabulary, in the order of their ids.
QWEN_SPECIAL_TOKENS = (
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|object_ref_start|>",
  "<|object_ref_end|>",
  "<|box_start|>",
  "<|box_end|>",
  "<|quad_start|>",
  "<|quad_end|>",
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
)
QWEN_TAGS = (  # added, but part of the text: `skip_special` keeps them
  "<tool_call>",
  "</tool_call>",
  "<|fim_prefix|>",
  "<|fim_middle|>",
  "<|fim_suffix|>",
  "<|fim_pad|>",
  "<|repo_name|>",
  "<|file_sep|>",
  "<tool_response>",
  "</tool_response>",
  "<think>",
  "</think>",
)
QWEN_ADDED_TOKENS = QWEN_SPECIAL_TOKENS + QWEN_TAGS

# How a text is cut before byte pairs merge; no merge crosses a cut.
QWEN_SPLIT_PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
  r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word with the one character before it
  r"|\p{N}"  # every digit alone
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation with the line breaks after it
  r"|\s*[\r\n]+"  # white space up to the last line break
  r"|\s+(?!\S)|\s+"  # other white space, less the last of it when a word follows
)

_LONGEST_SPACE = 500_000  # characters of white space in a row that tiktoken can match; it fails before 1,000,000
_SPACE = "\u2581"  # SentencePiece writes a space as this character


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """A token that stands for itself in a text and that no merge produces."""

  id: int
  special: bool  # a control token, which `decode(skip_special=True)` leaves out


class Backend(Protocol):
  """A vocabulary read from the bytes of its file."""

  data: bytes  # the file's content; saving writes it back unchanged
  file_name: str  # the name a folder keeps it under
  added_tokens: dict[str, AddedToken]
  token_bytes: list[bytes | None]  # UTF-8 bytes of each id; None where the vocabulary has a hole
  strips_leading_space: bool  # the encoder puts a space before each text, so the decoder takes it away

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text; whatever looks like an added token is plain text here. Valid Unicode only."""
    ...


def _added_special(name: str) -> bool:
  return name not in QWEN_TAGS


class TiktokenBackend:
  """A rank file: one `base64 rank` a line, followed in the vocabulary by Qwen's 26 added tokens. Text is NFC first."""

  file_name = "qwen.tiktoken"
  strips_leading_space = False

  def __init__(self, data: bytes, source: str):
    self.data = data
    ranks = _parse_ranks(data, source)
    self.added_tokens = {
      name: AddedToken(len(ranks) + i, _added_special(name)) for i, name in enumerate(QWEN_ADDED_TOKENS)
    }
    self.token_bytes: list[bytes | None] = [*ranks, *(name.encode() for name in QWEN_ADDED_TOKENS)]
    self._encoding = tiktoken.Encoding(
      "qwen",
      pat_str=QWEN_SPLIT_PATTERN,
      mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
      special_tokens={},
    )

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    if any(len(text) > _LONGEST_SPACE for text in texts):
      return [self._encode_long(text) for text in texts]
    if len(texts) == 1:
      return [self._encoding.encode_ordinary(texts[0])]
    return self._encoding.encode_ordinary_batch(texts, num_threads=_threads())

  def _encode_long(self, text: str) -> list[int]:
    """Cuts white space that the library's pattern matcher would fail on."""
    ends = [match.end() for match in re.finditer(rf"\s{{{_LONGEST_SPACE}}}", text)]
    parts = [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)])]
    return [id for part in parts for id in self._encoding.encode_ordinary(part)]


def _parse_ranks(data: bytes, source: str) -> list[bytes]:
  """Tokens by rank."""
  tokens: list[bytes] = []
  for number, line in enumerate(data.splitlines(), 1):
    if not line.strip():
      continue
    try:
      encoded, rank = line.split()
      token = base64.b64decode(encoded, validate=True)
      in_order = int(rank) == len(tokens)
    except (ValueError, binascii.Error):
      raise ValueError(f"{source}, line {number}: expected `base64 rank`, found {line[:40]!r}") from None
    if not in_order:
      raise ValueError(f"{source}, line {number}: expected rank {len(tokens)}, found {int(rank)}")
    tokens.append(token)
  missing = {bytes([value]) for value in range(256)} - set(tokens)
  if missing:
    raise ValueError(f"{source}: {len(missing)} of the 256 single bytes have no rank; the file is empty or cut short")
  return tokens


class HuggingFaceBackend:
  """A byte-level BPE `tokenizer.json`, with the normaliser and the splits that the file names."""

  file_name = "tokenizer.json"
  strips_leading_space = False

  def __init__(self, data: bytes, source: str):
    self.data = data
    try:
      spec = json.loads(data)
      vocabulary, decoder = spec["model"]["vocab"], spec["decoder"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{source}: not a tokenizer.json ({error})") from None
    if spec["model"].get("type", "BPE") != "BPE" or "ByteLevel" not in _component_types(decoder):
      raise ValueError(f"{source}: expected a BPE model with a ByteLevel decoder, found {spec['model'].get('type')!r}")

    self.added_tokens: dict[str, AddedToken] = {}
    for token in spec.get("added_tokens") or []:
      for flag in ("lstrip", "rstrip", "single_word"):
        if token.get(flag):
          raise ValueError(f"{source}: added token {token['content']!r} sets {flag}, which is not supported")
      self.added_tokens[token["content"]] = AddedToken(token["id"], token["special"])

    size = 1 + max([*vocabulary.values(), *(token.id for token in self.added_tokens.values())])
    self.token_bytes: list[bytes | None] = [None] * size
    byte_of = _byte_level_alphabet()
    for token, id in vocabulary.items():
      self.token_bytes[id] = bytes(byte_of[c] for c in token) if byte_of.keys() >= set(token) else token.encode()
    for name, added in self.added_tokens.items():
      self.token_bytes[added.id] = name.encode()

    plain = {**spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises Exception itself
      raise ValueError(f"{source}: {error}") from None

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _component_types(component: Any) -> set[str]:
  """Types of a tokenizer.json component and of those inside it."""
  if not isinstance(component, dict):
    return set()
  inner = component.get("decoders") or []
  return {component.get("type", "")}.union(*map(_component_types, inner))


def _byte_level_alphabet() -> dict[str, int]:
  """The byte behind each character of a byte-level vocabulary: printable Latin-1 as itself, the rest from U+0100 on."""
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [value for value in range(256) if value not in printable]
  return {chr(value): value for value in printable} | {chr(256 + i): value for i, value in enumerate(others)}


class SentencePieceBackend:
  """A SentencePiece `.model`. Text is NFC first, then normalised as the model says.

  Control pieces and user-defined pieces that look like `<tag>` are the added tokens.
  """

  file_name = "tokenizer.model"

  def __init__(self, data: bytes, source: str):
    self.data = data
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
      model.ParseFromString(data)
    except DecodeError:
      model.Clear()
    if not model.pieces:
      raise ValueError(f"{source}: not a SentencePiece model, or one that was cut short")
    self.strips_leading_space = model.normalizer_spec.add_dummy_prefix

    kinds = type(model).SentencePiece
    self.added_tokens: dict[str, AddedToken] = {}
    self.token_bytes: list[bytes | None] = []
    byte_ids: dict[int, int] = {}
    for id, piece in enumerate(model.pieces):
      text = piece.piece.replace(_SPACE, " ").encode()
      if piece.type == kinds.BYTE:
        byte_ids[int(piece.piece[3:5], 16)] = id
        text = bytes([int(piece.piece[3:5], 16)])
      elif piece.type == kinds.UNKNOWN:
        text = model.trainer_spec.unk_surface.encode()
      elif piece.type == kinds.CONTROL or (
        piece.type == kinds.USER_DEFINED and re.fullmatch(r"<[^<>\s]+>", piece.piece)
      ):
        self.added_tokens[piece.piece] = AddedToken(id, _added_special(piece.piece))
        text = piece.piece.encode()
        piece.type = kinds.CONTROL  # the library finds user-defined pieces in any text, even where they must stay plain
      self.token_bytes.append(text)

    # A literal U+2581 would come back as a space, so it is written in bytes.
    escapable = len(byte_ids) == 256 and not self.strips_leading_space
    self._escaped_space = [byte_ids[value] for value in _SPACE.encode()] if escapable else None
    self._processor = sentencepiece.SentencePieceProcessor()
    self._processor.LoadFromSerializedProto(model.SerializeToString())

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    if self._escaped_space is None or not any(_SPACE in text for text in texts):
      return self._encode(texts)
    return [self._encode_escaped(text) for text in texts]

  def _encode(self, texts: Sequence[str]) -> list[list[int]]:
    if len(texts) == 1:
      return [self._processor.encode(texts[0], out_type=int)]
    return self._processor.encode(list(texts), out_type=int, num_threads=_threads())

  def _encode_escaped(self, text: str) -> list[int]:
    assert self._escaped_space is not None
    first, *rest = self._encode(text.split(_SPACE))
    for ids in rest:
      first += self._escaped_space + ids
    return first


def _threads() -> int:
  return os.cpu_count() or 1


BACKENDS: dict[str, type[TiktokenBackend] | type[HuggingFaceBackend] | type[SentencePieceBackend]] = {
  ".json": HuggingFaceBackend,
  ".tiktoken": TiktokenBackend,
  ".model": SentencePieceBackend,
}
