"""What the documentation names exists: files, folders, links, stages; and the table of files names the whole tree."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.docs_commands import ROOT, pages
from qwen3_jax.config_loading import load

TREE = ("qwen3_jax", "kernels", "launch", "experiments")
FOLDERS = (*TREE, "docs", "tests", "benchmarks")
ARCHITECTURE, RECIPE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "recipe.md"
CHECKED = (ROOT / "README.md", ARCHITECTURE, RECIPE, *sorted((ROOT / "docs" / "tutorials").glob("*.md")))
FILES = [
  str(path.relative_to(ROOT))
  for folder in FOLDERS
  for path in sorted((ROOT / folder).rglob("*"))
  if path.is_file() and "__pycache__" not in path.parts
]


def named(text: str) -> Iterator[str]:
  """Files of the checkout, and folders of it, that a text names in backticks outside of fenced blocks."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
  for token in re.findall(r"`([^`\s]+)`", text):
    token = token.split(":")[0]
    if "NAME" in token or "OP" in token or token == "report.md":  # to be filled in, or written by a run
      continue
    if re.fullmatch(r"[\w./*<>-]+\.(?:py|md|sh|yaml)", token) or token.startswith(tuple(f"{f}/" for f in FOLDERS)):
      yield re.sub(r"<\w+>", "*", token)


def exists(name: str, page: str = "") -> bool:
  """From the root, or as the end of a path; or a file that the page itself writes."""
  if any(ROOT.glob(name.rstrip("/"))) or f"file={name}\n" in page:
    return True
  pattern = re.compile("(?:.*/)?" + re.escape(name.rstrip("/")).replace(r"\*", "[^/]*") + "(?:/.*)?")
  return any(pattern.fullmatch(file) for file in FILES)


@pytest.mark.parametrize("page", CHECKED, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
  text = page.read_text()
  missing = [name for name in named(text) if not exists(name, text)]
  assert not missing, missing
  if page in CHECKED[:3]:
    assert len(list(named(text))) > 10  # else nothing was read


def test_links_lead_somewhere():
  dead = []
  for page in pages():
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
      if not re.match(r"https?://", target) and not (page.parent / target).exists():
        dead.append(f"{page.relative_to(ROOT)}: {target}")
  assert not dead, dead


def rows(page: Path) -> list[list[str]]:
  """Cells of the rows of all tables but their heads."""
  lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
  cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
  heads = [n - 1 for n, row in enumerate(cells) if set(row[0]) == {"-"}]
  return [row for n, row in enumerate(cells) if n not in heads and n - 1 not in heads]


def test_every_sentence_of_the_recipe_is_somewhere_or_an_issue():
  """A row has a file that exists, or a gap that reads as an issue's title; stages are those of experiments."""
  found = rows(RECIPE)
  assert len(found) > 60
  for report, code in found:
    files = [name for name in named(code) if exists(name)]
    gap = re.search(r"Gap: ([A-Z][^.|]{15,100})$", code)
    assert report and (files or gap), f"{report} | {code}"
  stages = {
    stage
    for experiment in ("dense_8b.py:post=rl", "distill_8b.py", "miniature.py:")
    for stage in load(str(ROOT / "experiments" / experiment.rstrip(":"))).stages
  }
  assert set(re.findall(r"`stages\.(\w+)", RECIPE.read_text())) <= stages


def covered(table: list[list[str]]) -> tuple[set[str], list[str]]:
  """Files of the tree that first cells name, and names that lead nowhere; a name goes on in the last one's folder."""
  files: set[str] = set()
  wrong = []
  for first, *_ in table:
    folder = ROOT
    for token in re.findall(r"`([^`]+)`", first):
      name = re.sub(r"<\w+>", "*", token)
      starts = (ROOT, folder, ROOT / "qwen3_jax")
      found = next((paths for start in starts if (paths := list(start.glob(name.rstrip("/"))))), [])
      if not found:
        wrong.append(token)
        continue
      folder = found[0].parent
      for path in found:
        inside = path.rglob("*") if path.is_dir() else (path,)
        files |= {str(file.relative_to(ROOT)) for file in inside}
  return files, wrong


def test_the_table_of_files_names_the_whole_tree():
  files, wrong = covered(rows(ARCHITECTURE))
  assert not wrong, wrong
  tree = {name for name in FILES if name.startswith(tuple(f"{top}/" for top in TREE)) and name.endswith(".py")}
  unnamed = sorted(name for name in tree - files if not name.endswith("__init__.py"))
  assert not unnamed, unnamed


def test_what_is_not_there_is_found():
  assert list(named("`qwen3_jax/mian.py` `x.py:3` `stages.s1`\n```sh run\n`y.py`\n```\n")) == [
    "qwen3_jax/mian.py",
    "x.py",
  ]
  assert (
    exists("qwen3_jax/main.py") and exists("models/rope.py") and exists("kernels/*/api.py") and exists("fusion*.py")
  )
  assert not exists("qwen3_jax/mian.py") and not exists("odels/rope.py") and exists("a.py", "```python file=a.py\n")
  files, wrong = covered([["`qwen3_jax/main.py`, `config.py`; `kernels/<op>/`, `nothing.py`", ""]])
  assert wrong == ["nothing.py"] and {"qwen3_jax/config.py", "kernels/paged_attention/items.py"} <= files
  assert "qwen3_jax/batch.py" not in files
