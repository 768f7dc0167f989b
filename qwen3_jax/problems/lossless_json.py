"""Values that JSON would change (tuples, keys that are no text), written so that they come back as they were."""

from __future__ import annotations

import enum
from typing import Any

_TUPLE, _PAIRS = "__tuple__", "__pairs__"


def pack(value: Any) -> Any:
  """Raises TypeError for what is neither None, bool, number, text, list, tuple nor dict."""
  if isinstance(value, dict):
    if all(isinstance(key, str) for key in value):
      return {key: pack(item) for key, item in value.items()}
    return {_PAIRS: [[pack(key), pack(item)] for key, item in value.items()]}
  if isinstance(value, tuple):
    return {_TUPLE: [pack(item) for item in value]}
  if isinstance(value, list):
    return [pack(item) for item in value]
  if value is None or type(value) in (bool, int, float, str):
    return value
  if isinstance(value, enum.Enum):  # of text or numbers
    return pack(value.value)
  if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of NumPy
    return value.item()
  raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def unpack(value: Any) -> Any:
  """What `pack` was given."""
  if isinstance(value, dict):
    if value.keys() == {_TUPLE}:
      return tuple(unpack(item) for item in value[_TUPLE])
    if value.keys() == {_PAIRS}:
      return {unpack(key): unpack(item) for key, item in value[_PAIRS]}
    return {key: unpack(item) for key, item in value.items()}
  return [unpack(item) for item in value] if isinstance(value, list) else value
