"""Runs the commands of the documentation, page by page, each page in a temporary folder of its own.

  python benchmarks/docs_commands.py [--pages=docs/tutorials/distil.md,README.md] [--only=run] [--keep=DIR]

The info string of a fenced block says what becomes of it:

  sh run, python run      executed here and by tests/docs/test_commands.py, in the order of the page
  sh slow, python slow    executed here
  sh cloud                needs an account, an accelerator, the network or hours: what it names is looked up, see
                          tests/docs/command_names.py
  python file=NAME        written to NAME, for the commands that follow
  text, json, python      shown; no command

In the place of released checkpoints a page finds a small one: Qwen3-0.6B and Qwen3-8B are the reference checkpoint of
tests/golden/dense with a tokenizer trained on Python's help texts. Compiled programs are kept for all pages.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pydoc_data.topics
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from markdown_it import MarkdownIt

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.train_tokenizer import train_sentencepiece

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/*.md", "docs/tutorials/*.md")
LANGUAGES = ("sh", "python")
SHOWN = ("text", "json", "python")
MARKS = ("run", "slow", "cloud")
STAND_INS = ("Qwen3-0.6B", "Qwen3-8B")
_LINKED = ("experiments", "launch", "tests", "benchmarks", "docs", "Makefile")  # what commands name, from the checkout
_SECONDS = 1800  # of a block


@dataclasses.dataclass(frozen=True)
class Block:
  page: str  # path from the root of the checkout
  line: int
  info: str
  text: str

  @property
  def place(self) -> str:
    return f"{self.page}:{self.line}"

  @property
  def language(self) -> str:
    return self.info.partition(" ")[0]

  @property
  def mark(self) -> str:
    """One of MARKS, "file", "" for what is only shown, or whatever else stands there."""
    mark = self.info.partition(" ")[2]
    return "file" if mark.startswith("file=") else mark

  @property
  def is_marked(self) -> bool:
    known = (*MARKS, "file") if self.language == "python" else MARKS
    return self.info in SHOWN or (self.language in LANGUAGES and self.mark in known)


def pages() -> list[Path]:
  """All pages that may hold commands."""
  return [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]


def blocks(page: Path) -> list[Block]:
  """The fenced blocks of a page, in its order."""
  name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
  fences = (token for token in MarkdownIt().parse(page.read_text()) if token.type == "fence")
  return [Block(name, (token.map or [0])[0] + 1, token.info.strip(), token.content) for token in fences]


@dataclasses.dataclass(frozen=True)
class Outcome:
  block: Block
  code: int
  output: str  # of both streams, its end
  seconds: float


class Runner:
  """Executes pages.

  Args:
    shared: folder for what they have in common: the small checkpoint and compiled programs.
    xla_flags: of all that it runs; programs need not be optimised for blocks that compile more than they compute.
  """

  def __init__(self, shared: Path, xla_flags: str):
    self._shared = shared
    self.environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(shared / "xla"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "XLA_FLAGS": xla_flags,
      "PYTHONPATH": str(ROOT),
      "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }

  def run(self, page: Iterable[Block], folder: Path, marks: Iterable[str]) -> Iterator[Outcome]:
    """Executes the blocks of one page with one of `marks` in `folder`, until one fails."""
    marks = tuple(marks)
    self._prepare(folder)
    for block in page:
      if block.mark == "file":
        file = folder / block.info.partition("file=")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)
      elif block.mark in marks and block.mark != "cloud":
        outcome = self._execute(block, folder)
        yield outcome
        if outcome.code:
          return

  def _execute(self, block: Block, folder: Path) -> Outcome:
    shell = ["bash", "-euo", "pipefail", "-c"]
    command = [*(shell if block.language == "sh" else [sys.executable, "-c"]), block.text]
    start = time.monotonic()
    process = subprocess.Popen(
      command, cwd=folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
      output, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
      process.kill()
      output = process.communicate()[0] + f"\nnot done in {_SECONDS} s"
    return Outcome(block, process.returncode, output[-4000:], time.monotonic() - start)

  def _prepare(self, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _LINKED:
      (folder / name).symlink_to(ROOT / name)
    checkpoint = self._shared / "checkpoint"
    if not checkpoint.exists():
      make_checkpoint(checkpoint)
    for name in STAND_INS:
      (folder / name).symlink_to(checkpoint)


def make_checkpoint(folder: Path) -> None:
  """A small Hugging Face folder: the reference's random weights, a tokenizer, and a context as long as Qwen3's."""
  golden = ROOT / "tests" / "golden" / "dense"
  config = json.loads((golden / "config.json").read_text())
  folder.mkdir(parents=True)
  shutil.copy(golden / "model.safetensors", folder)
  (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40_960}))
  texts = list(pydoc_data.topics.topics.values())
  with tempfile.TemporaryDirectory() as scratch:
    train_sentencepiece(texts, Path(scratch) / "tokenizer.model", config["vocab_size"])
    Tokenizer.from_pretrained(scratch).save(folder)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--pages", default="", help="separated by commas; all unless given")
  parser.add_argument("--only", choices=("run", "slow"), help="blocks with this mark alone")
  parser.add_argument("--keep", type=Path, help="folder in which pages leave their files")
  options = parser.parse_args()
  wanted = [ROOT / name for name in options.pages.split(",")] if options.pages else pages()
  marks = (options.only,) if options.only else ("run", "slow")
  failed = []
  with tempfile.TemporaryDirectory() as temporary:
    scratch = options.keep or Path(temporary)
    runner = Runner(scratch / "shared", "" if "slow" in marks else "--xla_backend_optimization_level=0")
    for page in wanted:
      folder = scratch / page.relative_to(ROOT).with_suffix("")
      for outcome in runner.run(blocks(page), folder, marks):
        print(f"{'FAILED' if outcome.code else 'ok':6s} {outcome.seconds:6.1f} s  {outcome.block.place}", flush=True)
        if outcome.code:
          failed.append(outcome.block.place)
          print(outcome.output)
  print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "all commands ran")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
