"""Text of a Python installation, on a small tree made here and on the one that runs the tests."""

import collections
import gettext
import itertools
import struct

import pytest

from qwen3_jax.data.catalogue import catalogue_documents, translations
from qwen3_jax.data.sources import SourceError, documents, open_source

SOURCE = '''"""Adds numbers."""


def add(left, right):
  """The sum of two numbers, or of anything with a plus."""
  return left + right
'''
PROSE = "This package adds numbers. It is small, and it does one thing well. " * 8


def catalogue(messages: dict[str, str], charset: str = "utf-8") -> bytes:
  """A compiled catalogue, after the layout in gettext's manual."""
  messages = {"": f"Content-Type: text/plain; charset={charset}\n", **messages}
  items = sorted((key.encode(charset), value.encode(charset)) for key, value in messages.items())
  texts = [pair[0] for pair in items] + [pair[1] for pair in items]
  start = 28 + 8 * len(texts)
  offsets = itertools.accumulate((len(text) + 1 for text in texts), initial=start)
  table = b"".join(struct.pack("<II", len(text), offset) for text, offset in zip(texts, offsets))
  return (
    struct.pack("<7I", 0x950412DE, 0, len(items), 28, 28 + 8 * len(items), 0, 0) + table + b"\0".join([*texts, b""])
  )


@pytest.fixture
def tree(tmp_path):
  files = {
    "one/add.py": SOURCE.encode(),
    "one/copy.py": SOURCE.encode(),  # equal content counts once
    "one/table.py": ("DATA = [" + "0x10, 0x22, " * 4000 + "]").encode(),
    "one/long.py": SOURCE.encode() + b"x = '" + b"a" * 3000 + b"'\n",
    "one/binary.py": SOURCE.encode() + b"\0",
    "one/__pycache__/add.py": b"# cached\n" + SOURCE.encode(),
    "one/README.md": PROSE.encode(),
    "one/LICENSE.txt": (PROSE + "All rights reserved.").encode(),
    "one/labels.txt": b"\n".join(b"label_%d" % i for i in range(500)),
    "one/tests/case.txt": (PROSE + "Of a test.").encode(),
    "one-1.0.dist-info/METADATA": b"Name: one\nVersion: 1\n\n# one\n\n" + PROSE.encode(),
    "one/locale/de/LC_MESSAGES/one.mo": catalogue({"one": "eins", "same": "same", "%d files": "%d Datei\0%d Dateien"}),
    "one/locale/zh_Hans/LC_MESSAGES/one.mo": catalogue({"one": "一", "two": "二"}),
    "one/locale/en_GB/LC_MESSAGES/one.mo": catalogue({"color": "colour"}),
    "one/locale/fr/LC_MESSAGES/broken.mo": b"\xde\x12\x04\x95junk",
  }
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
  return tmp_path


def test_keeps_what_people_wrote_with_its_labels(tree):
  found = {(d.id, d.domain, d.language): d.text for d in documents(open_source(f"python:{tree}"))}
  assert set(found) == {
    ("one/add.py", "code", "python"),
    ("one/README.md#0", "documentation", "en"),
    ("one-1.0.dist-info/METADATA#0", "documentation", "en"),
    ("one/locale/de/LC_MESSAGES/one.mo#0", "multilingual", "de"),
    ("one/locale/zh_Hans/LC_MESSAGES/one.mo#0", "multilingual", "zh"),
  }
  assert found["one/add.py", "code", "python"] == SOURCE
  assert found["one-1.0.dist-info/METADATA#0", "documentation", "en"].startswith("# one\n\nThis package")
  assert sorted(found["one/locale/de/LC_MESSAGES/one.mo#0", "multilingual", "de"].split("\n")) == [
    "",
    "%d Datei",
    "%d Dateien",
    "eins",
  ]


def test_translations_agree_with_the_standard_library(tmp_path):
  messages = {f"message {i}": f"Übersetzung {i}" for i in range(300)} | {"context\x04word": "Wort"}
  for charset in ("utf-8", "iso-8859-1"):
    data = catalogue(messages, charset)
    (tmp_path / "a.mo").write_bytes(data)
    with (tmp_path / "a.mo").open("rb") as file:
      reference = gettext.GNUTranslations(file)
    assert sorted(translations(data)) == sorted(reference.gettext(key) for key in messages)
    texts = list(catalogue_documents(data))
    assert len(texts) == 2 and "".join(texts).splitlines() == list(translations(data))


@pytest.mark.parametrize("cut", [3, 10, 40, 200])
def test_a_damaged_catalogue_is_an_error(cut):
  data = catalogue({"one": "eins" * 50, "two": "zwei" * 50})
  with pytest.raises(ValueError, match="catalogue"):
    list(translations(data[:cut]))


def test_the_order_is_the_same_every_time_and_the_domains_last_equally_long(tree):
  for i in range(300):
    (tree / f"one/module_{i}.py").write_text(f"# Module number {i}\n" + SOURCE * (1 + i % 5))
    (tree / f"one/page_{i}.md").write_text(f"Page number {i}. " + PROSE)
  source, again = open_source(f"python:{tree}"), open_source(f"python:{tree}")
  assert source.units == again.units
  part = collections.Counter()
  for unit in source.units[:100]:
    part[unit.domain] += unit.size
  assert abs(part["code"] - part["documentation"]) < 2000


def test_this_installation_is_large_enough():
  source = open_source("python:")
  sizes = collections.Counter()
  for unit in source.units:
    sizes[unit.domain] += unit.size
  assert sizes.total() > 20e6 and sizes["documentation"] > 1e5
  catalogues = [unit for unit in source.units if unit.domain == "multilingual"]
  if not catalogues:
    pytest.skip("no installed package has translations")
  assert len({document.language for unit in catalogues for document in source.read(unit)}) >= 8


def test_a_folder_that_is_not_there():
  with pytest.raises(SourceError, match="python:/nowhere: /nowhere is not a folder"):
    open_source("python:/nowhere")


def test_one_domain_of_the_installation():
  everything, translations = open_source("python:"), open_source("python:multilingual")
  assert {unit.domain for unit in translations.units} == {"multilingual"}
  assert {unit.name for unit in translations.units} == {
    unit.name for unit in everything.units if unit.domain == "multilingual"
  }
