"""Debian packages as a source: pages that are already in the cache, and what happens without apt."""

import pytest

from qwen3_jax.data.html_text import html_to_text
from qwen3_jax.data.sources import SourceError, documents, open_source

PAGE = """<!DOCTYPE html><html><head><title>No</title><script>no()</script></head><body>
<header><p>No</p></header><div role="navigation"><div>No</div> no</div>
<h1>Titel &amp; mehr</h1><p>Ein   Satz
mit <b>Wörtern</b>.</p><ul><li><p>eins</p></li><li>zwei</ul><pre>x = 1
  y</pre><p>{}</p><footer>No</footer></body></html>"""
LONG = "Noch ein Satz. " * 20


def test_html_to_text_keeps_what_a_page_says():
  assert html_to_text(PAGE.format("Ende")) == (
    "Titel & mehr\n\nEin Satz mit Wörtern.\n\n- eins\n\n- zwei\n\nx = 1\n  y\n\nEnde\n"
  )


def test_pages_of_the_cache_with_their_labels(tmp_path):
  for name in (
    "libreoffice-help-pt-br/usr/share/help/text/a.html",
    "libreoffice-help-en-us/usr/share/help/text/a.html",
    "maxima-doc/usr/share/doc/html/es/a.html",
    "maxima-doc/usr/share/doc/html/a.html",
    "maxima-doc/usr/share/doc/html/maxima_singlepage.html",
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(PAGE.format(LONG))
  (tmp_path / "maxima-doc/short.html").write_text(PAGE.format(""))
  packages = "libreoffice-help-pt-br,libreoffice-help-en-us,maxima-doc"
  found = list(documents(open_source(f"debian-docs:{packages}@{tmp_path}")))
  assert sorted((d.id.split("/")[0], d.domain, d.language) for d in found) == [
    ("libreoffice-help-en-us", "documentation", "en"),
    ("libreoffice-help-pt-br", "multilingual", "pt"),
    ("maxima-doc", "documentation", "en"),
    ("maxima-doc", "multilingual", "es"),
  ]


def test_without_apt_the_error_says_so(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(SourceError, match="apt-get is not installed; this source needs Debian"):
    open_source(f"debian-docs:gap-doc@{tmp_path}")
  with pytest.raises(SourceError, match="apt-cache is not installed"):
    open_source(f"debian-docs:@{tmp_path}")


def test_what_apt_says_is_passed_on(tmp_path, monkeypatch):
  (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package x-doc' >&2\nexit 100\n")
  (tmp_path / "apt-get").chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
  with pytest.raises(SourceError, match=r"Unable to locate package x-doc.*apt-get update"):
    open_source(f"debian-docs:x-doc@{tmp_path / 'cache'}")
  assert not (tmp_path / "cache" / "x-doc").exists()
