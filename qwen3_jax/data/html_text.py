"""HTML to plain text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_BLOCKS = frozenset(
  "address article aside blockquote body br dd div dl dt figcaption figure footer h1 h2 h3 h4 h5 h6 header hr li main "
  "nav ol p pre section table td th title tr ul".split()
)
_HIDDEN = frozenset("aside button footer form head header nav noscript script style svg template".split())


class _Text(HTMLParser):
  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.parts: list[str] = []
    self._hidden = ""  # the open element whose text is left out
    self._depth = 0  # elements of that name open in it, itself included
    self._preformatted = 0

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    if tag == "body":
      self._hidden = ""  # a head need not be closed
    if self._hidden:
      self._depth += tag == self._hidden
    elif tag in _HIDDEN or ("role", "navigation") in attrs:
      self._hidden, self._depth = tag, 1
    else:
      self._preformatted += tag == "pre"
      if tag in _BLOCKS:
        self.parts.append("\n- " if tag == "li" else "\n")

  def handle_endtag(self, tag: str) -> None:
    if self._hidden:
      self._depth -= tag == self._hidden
      if not self._depth:
        self._hidden = ""
    else:
      self._preformatted -= tag == "pre" and self._preformatted > 0
      if tag in _BLOCKS:
        self.parts.append("\n")

  def handle_data(self, data: str) -> None:
    if not self._hidden:
      self.parts.append(data if self._preformatted else re.sub(r"\s+", " ", data))


def html_to_text(html: str) -> str:
  """What a page says: blocks on lines of their own, list items after a dash, preformatted text as it is.

  Navigation, headers, footers and side bars are left out.
  """
  parser = _Text()
  parser.feed(html)
  parser.close()
  text = re.sub(r"[ \t\r\xb6]+\n", "\n", "".join(parser.parts) + "\n")  # with the marks that Sphinx ends headings with
  text = re.sub(r"\n-\s+", "\n- ", text)  # a block in a list item
  return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
