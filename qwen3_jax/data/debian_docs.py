"""Documentation from Debian packages: real text in some thirty languages, a few megabytes each.

Packages are fetched with `apt-get download` and unpacked into a cache folder; nothing is installed. Every page becomes
a document of domain documentation (English) or multilingual (other languages).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen3_jax.data.html_text import html_to_text
from qwen3_jax.data.sources import Document, SourceError, decode

_DEFAULT_CACHE = "~/.cache/qwen3_jax/debian-docs"
_HELP = "libreoffice-help-"
_OTHERS = ("gap-doc", "maxima-doc", "python3-doc")
_SHORTEST = 200  # characters; shorter pages only lead to others
# Indices, whole manuals that are also there page by page, and GAP's chapters in a second way to show formulas.
_LEFT_OUT = re.compile(r"genindex|contents\.html|search\.html|modindex|singlepage|_mj\.html")
_LANGUAGE_FOLDER = re.compile(r"[a-z]{2}([-_][A-Za-z]{2})?$")


@dataclasses.dataclass(frozen=True)
class _Page:
  path: Path
  name: str  # relative to the package's folder
  package: str


class DebianDocs:
  """A unit is a page. `location` is `[PACKAGES][@CACHE_DIR]`, packages separated by commas.

  Without packages: every libreoffice-help-XX, and gap-doc, maxima-doc and python3-doc. Fetches what the cache lacks.
  Raises SourceError where apt is missing or a package cannot be had.
  """

  def __init__(self, location: str = ""):
    names, _, cache = location.partition("@")
    folder = Path(cache or _DEFAULT_CACHE).expanduser()
    packages = [name.strip() for name in names.split(",") if name.strip()]
    self.units: list[_Page] = []
    for package in packages or _default_packages():
      root = _unpacked(package, folder)
      pages = sorted(path for path in root.rglob("*.html") if path.is_file() and not path.is_symlink())
      self.units += [
        _Page(page, str(page.relative_to(root)), package) for page in pages if not _LEFT_OUT.search(page.name)
      ]
    # In hashed order any leading part has every package.
    self.units.sort(key=lambda page: hashlib.sha256(f"{page.package}/{page.name}".encode(errors="replace")).digest())

  def read(self, unit: _Page) -> Iterator[Document]:
    html, replaced = decode(unit.path.read_bytes())
    text = html_to_text(html)
    if len(text) >= _SHORTEST:
      language = _language(unit)
      domain = "documentation" if language == "en" else "multilingual"
      yield Document(text, domain, language, f"{unit.package}/{unit.name}", replaced)


def _language(page: _Page) -> str:
  """ISO 639: by the package's name, else by a folder named as a language, else English."""
  if page.package.startswith(_HELP):
    return page.package.removeprefix(_HELP).split("-")[0]
  folders = [part for part in Path(page.name).parts[:-1] if _LANGUAGE_FOLDER.match(part)]
  return folders[-1][:2] if folders else "en"


def _default_packages() -> list[str]:
  names = _run(["apt-cache", "pkgnames", _HELP]).split()
  if not names:
    raise SourceError("debian-docs: apt knows no libreoffice-help packages; run `apt-get update` as root first")
  left_out = {f"{_HELP}common", f"{_HELP}en-gb"}  # no text; the same as en-us
  return sorted({*names, *_OTHERS} - left_out)


def _unpacked(package: str, cache: Path) -> Path:
  """Folder of the package's files, fetched and unpacked if it is not there."""
  folder = cache / package
  if folder.is_dir():
    return folder
  download = cache / f".{package}.partial"
  shutil.rmtree(download, ignore_errors=True)
  download.mkdir(parents=True)
  for name in _packages_with_files(package):
    _run(["apt-get", "download", name], cwd=download)
  for file in download.glob("*.deb"):
    _run(["dpkg-deb", "-x", file.name, "files"], cwd=download)
  (download / "files").rename(folder)
  shutil.rmtree(download)
  return folder


def _packages_with_files(package: str) -> list[str]:
  """python3-doc only names the package of the current version (python3.N-doc); others are what they are called."""
  if package != "python3-doc":
    return [package]
  depends = _run(["apt-cache", "depends", "--important", package])
  return sorted(set(re.findall(r"Depends: (python3\.\d+-doc)", depends))) or [package]


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
  try:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
  except FileNotFoundError:
    raise SourceError(
      f"debian-docs: {command[0]} is not installed; this source needs Debian, Ubuntu or another system with apt"
    ) from None
  except subprocess.CalledProcessError as error:
    reasons = [line for line in error.stderr.splitlines() if line.startswith("E:")] or [f"exit code {error.returncode}"]
    raise SourceError(
      f"debian-docs: `{' '.join(command)}` failed ({reasons[0]}); if apt's lists are old, run `apt-get update` as root"
    ) from None
