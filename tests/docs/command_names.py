"""What a shell block of the documentation names, looked up without running it: modules, flags, files, keys, targets."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.docs_commands import ROOT, Block
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import load

_FLAG = re.compile(r"""(?<![\w=/"'-])--?(\w[\w-]*)(\.[\w.]+)?""")
_WITH_CONFIG = ("config", "config_override")


def wrong_names(block: Block) -> Iterator[str]:
  """One line for each name in a shell block that nothing has. Experiments are looked for from the current folder."""
  text = re.sub(r"\\\n\s*", " ", block.text)
  for line in text.splitlines():
    if line.lstrip().startswith("#"):
      continue
    line = re.sub(r"(^|\s)#.*", "", line)
    yield from _wrong_targets(line)
    yield from _wrong_extras(line)
    for script in re.findall(r"(?<![\w/])((?:launch|benchmarks|experiments|docs|tests)/[\w./*-]+)", line):
      if not any(ROOT.glob(script)):
        yield f"{script}: no such file"
    for part in re.split(r"\s-m\s+", line)[1:]:
      module = re.match(r"[\w.]+", part)
      if module and module[0].partition(".")[0] in ("qwen3_jax", "launch"):
        yield from _wrong_flags(module[0], re.split(r"[;&|>`]", part[module.end() :])[0])
    yield from _wrong_config(line)


def _wrong_targets(line: str) -> Iterator[str]:
  targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
  for name in re.findall(r"^make\s+(\w+)", line):
    if name not in targets:
      yield f"make {name}: the Makefile has no such target"


def _wrong_extras(line: str) -> Iterator[str]:
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  for names in re.findall(r"(?:\.|qwen3_jax)\[([\w,-]+)\]", line):
    for name in names.split(","):
      if name not in extras:
        yield f"[{name}]: pyproject.toml has no such extra"


def _wrong_flags(module: str, arguments: str) -> Iterator[str]:
  if importlib.util.find_spec(module) is None:
    yield f"-m {module}: no such module"
    return
  known = flags_of(module)
  for flag, _ in _FLAG.findall(arguments.partition(" -- ")[0]):
    name = flag.removeprefix("no") if flag.removeprefix("no") in known else flag
    if name not in known:
      yield f"-m {module} --{flag}: no such flag"


@functools.cache
def flags_of(module: str) -> frozenset[str]:
  """Names of the flags that a command knows."""
  spec = importlib.util.find_spec(module)
  assert spec is not None and spec.origin is not None
  source = Path(spec.origin).read_text()
  if "argparse" not in source:
    found = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    if "define_config_flag" in source:
      found |= {*_WITH_CONFIG}
    for shared in re.findall(r"from launch(?:\.| import )(\w*flags)\b", source):
      found |= flags_of(f"launch.{shared}")
    return frozenset(found)
  command = importlib.import_module(module)
  shown = io.StringIO()
  before, sys.argv = sys.argv, [module, "--help"]
  try:
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
      command.main() if module.startswith("launch.") else command.main(["--help"])
  finally:
    sys.argv = before
  return frozenset(re.findall(r"(?<![\w-])--(\w+)", shown.getvalue()))


def _wrong_config(line: str) -> Iterator[str]:
  """Arguments and keys of the experiment that a line runs, with what its checks say of them together."""
  experiment = re.search(r"--config=([\w./-]+\.py[^\s\"']*)", line)
  if experiment is None:
    return
  overrides = [
    "=".join((key, next(filter(None, values), "")))
    for key, *values in re.findall(r"""--config\.([\w.]+)=(?:"([^"]*)"|'([^']*)'|([^\s"']*))""", line)
  ]
  path, _, arguments = experiment[1].partition(":")
  try:
    load(f"{path}:{arguments}", overrides)
  except FileNotFoundError:  # the experiment reads what an earlier command of the page makes; running it shows the rest
    return
  except ConfigError as error:
    for problem in error.problems:
      yield f"{experiment[1]}: {problem}"
