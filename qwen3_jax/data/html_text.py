"""HTML to plain text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = frozenset(
  "address article aside blockquote body br dd div dl dt figcaption figure footer h1 h2 h3 h4 h5 h6 header hr li main "
  "nav ol p pre section table td th title tr ul".split()
)
_HIDDEN = frozenset(("head", "script", "style", "template", "noscript", "svg", "nav", "form"))
_VOID = frozenset(("br", "hr", "img", "input", "link", "meta"))


class _Text(HTMLParser):
  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.parts: list[str] = []
    self._hidden: list[str] = []  # open elements whose text is not shown
    self._preformatted = 0

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    if tag in _HIDDEN:
      self._hidden.append(tag)
    self._preformatted += tag == "pre"
    if tag in _BLOCKS:
      self.parts.append("\n")
    if tag == "li":
      self.parts.append("- ")

  def handle_endtag(self, tag: str) -> None:
    if tag in self._hidden:
      del self._hidden[self._hidden.index(tag) :]
    self._preformatted -= tag == "pre" and self._preformatted > 0
    if tag in _BLOCKS and tag not in _VOID:
      self.parts.append("\n")

  def handle_data(self, data: str) -> None:
    if not self._hidden:
      self.parts.append(data if self._preformatted else re.sub(r"\s+", " ", data))


def html_to_text(html: str) -> str:
  """What a page shows: blocks on lines of their own, list items after a dash, preformatted text as it is."""
  parser = _Text()
  parser.feed(html)
  parser.close()
  text = re.sub(r"[ \t\r]+\n", "\n", "".join(parser.parts))
  text = re.sub(r"\n +(?=[^\s])", "\n", text) if "<pre" not in html.lower() else text
  return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
