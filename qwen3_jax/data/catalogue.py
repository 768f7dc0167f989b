"""Compiled gettext catalogues (.mo): real sentences in many languages."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

_DOCUMENT_CHARACTERS = 4000
_LETTER = re.compile(r"[^\W\d_]")


def language_of(file: Path) -> str:
  """`pt` for .../pt_BR/LC_MESSAGES/name.mo, whatever the region or script; "" elsewhere."""
  return re.split("[-_@.]", file.parent.parent.name)[0].lower() if file.parent.name == "LC_MESSAGES" else ""


def translations(data: bytes) -> Iterator[str]:
  """The translated messages of a catalogue, in its order; plural forms one by one. Raises ValueError if damaged.

  Messages that are not translated, or hold no letter, are left out.
  """
  order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
  if order is None:
    raise ValueError("not a compiled gettext catalogue")
  try:
    _, count, originals, translated = struct.unpack_from(f"{order}4I", data, 4)
    tables = [
      [_item(data, *struct.unpack_from(f"{order}2I", data, start + 8 * i)) for i in range(count)]
      for start in (originals, translated)
    ]
  except struct.error:
    raise ValueError("a truncated gettext catalogue") from None
  charset = "utf-8"
  for original, text in zip(*tables):
    if not original:
      found = re.search(rb"charset=([\w.-]+)", text)
      charset = found.group(1).decode() if found else charset
  for original, text in zip(*tables):
    forms = [form for form in dict.fromkeys(text.decode(charset, "replace").split("\0")) if _LETTER.search(form)]
    known = {form.decode(charset, "replace") for form in original.split(b"\x04")[-1].split(b"\0")}
    if original:
      yield from (form for form in forms if form not in known)


def _item(data: bytes, length: int, offset: int) -> bytes:
  if offset + length > len(data):
    raise ValueError("a truncated gettext catalogue")
  return data[offset : offset + length]


def catalogue_documents(data: bytes) -> Iterator[str]:
  """The messages, one a line, in texts of about 4,000 characters."""
  lines: list[str] = []
  size = 0
  for message in translations(data):
    lines.append(message.strip())
    size += len(lines[-1])
    if size >= _DOCUMENT_CHARACTERS:
      yield "\n".join(lines) + "\n"
      lines, size = [], 0
  if lines:
    yield "\n".join(lines) + "\n"
