"""What a message adds about a name that nothing has: the one that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_CUTOFF = 0.6  # how alike a name must be at least, 1 is equal


def clause(name: str, names: Iterable[str]) -> str:
  """ "; did you mean 'x'?", or nothing where no name is near."""
  return _hint("; did you mean {!r}?", name, names)


def sentence(name: str, names: Iterable[str], cutoff: float = _CUTOFF) -> str:
  """ " Did you mean 'x'?", or nothing where no name is near."""
  return _hint(" Did you mean {!r}?", name, names, cutoff)


def or_all(name: str, names: Iterable[str]) -> str:
  """ " Did you mean 'x'?", or the names where none is near."""
  names = sorted(names)
  return sentence(name, names) or f" Expected one of {', '.join(names)}."


def _hint(text: str, name: str, names: Iterable[str], cutoff: float = _CUTOFF) -> str:
  near = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
  return text.format(near[0]) if near else ""
