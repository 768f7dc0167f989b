"""Text that a Python installation holds: sources, documentation, translations. Nothing is downloaded.

| domain | language | from |
|---|---|---|
| code | python | .py files of the standard library and of installed packages |
| documentation | en | README and other .rst, .md, .txt and .html prose; package descriptions; the help topics |
| multilingual | the catalogue's | translated messages of gettext catalogues (.mo) |
"""

from __future__ import annotations

import ast
import dataclasses
import email.parser
import functools
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from qwen3_jax.data.catalogue import catalogue_documents, language_of
from qwen3_jax.data.html_text import html_to_text
from qwen3_jax.data.sources import Document, SourceError, decode

DOMAINS = ("code", "documentation", "multilingual")
_DOCUMENTATION = frozenset((".rst", ".md", ".txt", ".html"))
_ENDINGS = (".py", ".mo", "METADATA", *_DOCUMENTATION)
_SKIPPED_FOLDERS = frozenset(("__pycache__", "site-packages", "dist-packages"))
# Not prose, or the same in every package.
_SKIPPED_NAMES = re.compile(
  r"(?i)^(licen[cs]e|copying|copyright|notice|authors|third.?party|top_level|entry_points|sources|requirements)"
)
_TESTS = frozenset(("test", "tests", "testing", "test_data", "testdata"))  # their text files are cases, not prose
_LETTERS = bytes(range(ord("A"), ord("Z") + 1)) + bytes(range(ord("a"), ord("z") + 1)) + bytes(range(128, 256))
_LARGEST = 1 << 20  # bytes; larger files are tables and bundles more often than text


@dataclasses.dataclass(frozen=True)
class _File:
  path: Path
  name: str  # relative to its root
  domain: str
  size: int


class PythonText:
  """A unit is a file. In any leading part of the units, domains that are not used up have equal parts of the bytes.

  `location` is "" for this installation, one of DOMAINS for a part of it, or folders separated by commas. Files of
  equal content count once; tables, bundles and generated files are left out. Only names and contents set the order.
  """

  def __init__(self, location: str = ""):
    paths = sysconfig.get_paths()
    installed = location in ("", *DOMAINS)
    domains = (location,) if location in DOMAINS else DOMAINS
    names = [paths["stdlib"], paths["purelib"], paths["platlib"]] if installed else location.split(",")
    roots = tuple(dict.fromkeys(Path(name.strip()) for name in names))
    for root in roots:
      if not root.is_dir():
        raise SourceError(f"python:{location}: {root} is not a folder")
    self.units = _installed_units(roots, domains) if installed else _units(roots, domains)

  def read(self, unit: _File) -> Iterator[Document]:
    content = unit.path.read_bytes()
    if unit.domain == "multilingual":
      language = language_of(unit.path)
      for number, text in enumerate(catalogue_documents(content)):
        yield Document(text, unit.domain, language, f"{unit.name}#{number}", 0)
      return
    text, replaced = decode(content)
    if unit.domain == "code":
      yield Document(text, unit.domain, "python", unit.name, replaced)
    else:
      for number, prose in enumerate(_prose(unit.path, text)):
        yield Document(prose, unit.domain, "en", f"{unit.name}#{number}", replaced if number == 0 else 0)


def _units(roots: tuple[Path, ...], domains: tuple[str, ...]) -> tuple[_File, ...]:
  by_domain: dict[str, list[_File]] = {}
  seen = set()
  for root in roots:
    for name in sorted(_walk(root)):
      path = root / name
      domain = _domain(path)
      if domain not in domains or (domain == "documentation" and not _TESTS.isdisjoint(name.split(os.sep))):
        continue
      content = path.read_bytes()
      digest = hashlib.sha256(content).digest()
      if digest in seen or not _is_text(content, path):
        continue
      seen.add(digest)
      by_domain.setdefault(domain, []).append(_File(path, name, domain, len(content)))
  return tuple(_interleaved(by_domain))


_installed_units = functools.cache(_units)  # all files are read for it, and every corpus and the tokenizer asks


def _walk(root: Path, folder: str = "") -> Iterator[str]:
  """Names, relative to `root`, of the files that may hold text."""
  with os.scandir(root / folder) as entries:
    for entry in entries:
      if entry.is_dir(follow_symlinks=False):
        if entry.name not in _SKIPPED_FOLDERS:
          yield from _walk(root, os.path.join(folder, entry.name))
      elif entry.is_file(follow_symlinks=False) and entry.name.endswith(_ENDINGS):
        if 0 < entry.stat().st_size <= _LARGEST:
          yield os.path.join(folder, entry.name)


def _domain(path: Path) -> str:
  """Domain of a file by its name; "" for one that is not used."""
  if path.suffix == ".mo":
    return "multilingual" if language_of(path) not in ("", "en") else ""
  if path.name == "METADATA" or (path.parent.name == "pydoc_data" and path.name == "topics.py"):
    return "documentation"
  if path.suffix == ".py":
    return "code"
  if path.suffix in _DOCUMENTATION and not _SKIPPED_NAMES.match(path.name):
    return "documentation"
  return ""


def _is_text(content: bytes, path: Path) -> bool:
  """Whether a file is written by people: no table, bundle or binary."""
  if path.suffix == ".mo":
    try:
      return next(catalogue_documents(content), None) is not None
    except (ValueError, LookupError):
      return False
  if b"\0" in content:
    return False
  if _domain(path) == "code":
    letters = len(content) - len(content.translate(None, _LETTERS))
    visible = len(content.translate(None, b" \t\r\n\f"))
    return len(content) >= 100 and max(map(len, content.split(b"\n"))) <= 1000 and letters >= 0.4 * visible
  return any(True for _ in _prose(path, decode(content)[0]))


def _prose(path: Path, text: str) -> Iterator[str]:
  """The texts of a documentation file that read as prose."""
  if path.name == "METADATA":
    message = email.parser.Parser().parsestr(text)
    texts = [str(message.get_payload() or message.get("Description", ""))]
  elif path.name == "topics.py":
    try:
      (assignment,) = (node for node in ast.parse(text).body if isinstance(node, ast.Assign | ast.AnnAssign))
      texts = list(ast.literal_eval(assignment.value).values()) if assignment.value else []
    except (SyntaxError, ValueError):
      texts = []
  else:
    texts = [html_to_text(text) if path.suffix == ".html" else text]
  for candidate in texts:
    words = re.findall(r"\b[a-zA-Z][a-z]+\b", candidate)
    sentences = len(re.findall(r"[a-z\"'`)][.!?:](?=\s)", candidate))
    letters = sum(map(len, words))
    if (
      len(candidate) >= 300
      and sentences >= len(words) / 60 >= 0.5
      and letters >= 0.55 * len("".join(candidate.split()))
    ):
      yield candidate.strip() + "\n"


def _interleaved(by_domain: dict[str, list[_File]]) -> list[_File]:
  """Files in hashed order, next from the domain that has had the fewest bytes."""
  queues = {
    domain: sorted(files, key=lambda file: hashlib.sha256(file.name.encode(errors="replace")).digest(), reverse=True)
    for domain, files in sorted(by_domain.items())
  }
  taken = dict.fromkeys(queues, 0)
  order = []
  while left := [domain for domain, files in queues.items() if files]:
    domain = min(left, key=taken.__getitem__)
    file = queues[domain].pop()
    taken[domain] += file.size
    order.append(file)
  return order
