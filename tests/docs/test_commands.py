"""Every command in the documentation is marked, names what exists, and those marked `run` run."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from command_names import wrong_names

from benchmarks.docs_commands import ROOT, Block, Runner, blocks, pages
from tests import fast_compiling

NAMES = {str(page.relative_to(ROOT)): blocks(page) for page in pages()}
RUN = [name for name, found in NAMES.items() if any(block.mark == "run" for block in found)]
_PROGRAMS = "python3?|pip|uv|make|docker|gcloud|sbatch|sky|bash|launch/\\S+"
_COMMAND = re.compile(rf"^\s*(?:\w+=\S+ )*(?:{_PROGRAMS})\s", re.MULTILINE)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
  return Runner(tmp_path_factory.mktemp("shared"), fast_compiling.FLAGS)


def test_every_fenced_block_is_marked():
  unmarked = [f"{block.place}: {block.info!r}" for found in NAMES.values() for block in found if not block.is_marked]
  assert not unmarked, unmarked


def test_what_is_only_shown_holds_no_command():
  hidden = [
    block.place
    for found in NAMES.values()
    for block in found
    if block.info in ("text", "json") and _COMMAND.search(block.text)
  ]
  assert not hidden, hidden


@pytest.mark.parametrize("name", NAMES)
def test_names_in_commands_exist(name, runner, tmp_path, monkeypatch):
  folder = tmp_path / "page"
  list(runner.run(NAMES[name], folder, ()))  # what the page writes itself
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  before = set(sys.modules)
  try:
    wrong = [f"{b.place}: {what}" for b in NAMES[name] if b.language == "sh" for what in wrong_names(b)]
  finally:
    for module in set(sys.modules) - before:
      if (file := getattr(sys.modules[module], "__file__", None)) and Path(file).is_relative_to(tmp_path):
        del sys.modules[module]
    importlib.invalidate_caches()
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", RUN)
def test_the_commands_of_a_page_run(name, runner, tmp_path):
  for outcome in runner.run(NAMES[name], tmp_path / "page", ["run"]):
    assert outcome.code == 0, f"{outcome.block.place}\n{outcome.output}"


def page_of(tmp_path, text):
  page = tmp_path / "page.md"
  page.write_text(text)
  return blocks(page)


def test_a_failing_command_ends_its_page(runner, tmp_path):
  page = page_of(
    tmp_path,
    "```python file=a/b.py\nx = 3\n```\n```python run\nfrom a.b import x\nprint(x)\n```\n"
    "```sh run\nfalse | true\n```\n```sh run\ntouch never\n```\n```sh slow\ntouch slow\n```\n",
  )
  outcomes = list(runner.run(page, tmp_path / "folder", ["run"]))
  assert [outcome.code for outcome in outcomes] == [0, 1]
  assert outcomes[0].output == "3\n" and outcomes[1].block.line == 8
  assert not (tmp_path / "folder" / "never").exists() and not (tmp_path / "folder" / "slow").exists()


def test_marks_are_read():
  marked = {"sh run": True, "python slow": True, "sh cloud": True, "python file=x.py": True, "text": True}
  marked |= {"": False, "sh": False, "bash run": False, "sh file=x": False, "sh rnu": False, "python": True}
  assert {info: Block("p", 1, info, "").is_marked for info in marked} == marked


@pytest.mark.parametrize(
  ("command", "wrong"),
  [
    ("python -m qwen3_jax.main --config=experiments/miniature.py --workdir=w --num_proceses=2", "--num_proceses"),
    ("python -m qwen3_jax.main --config=experiments/minature.py --workdir=w", "experiments/minature.py: no such file"),
    ("python -m qwen3_jax.main --config=experiments/miniature.py:tiyn --workdir=w", "Did you mean 'tiny'?"),
    ("python -m qwen3_jax.main --config=experiments/miniature.py \\\n  --config.stages.s1.token=3", "stages.s1.tokens"),
    ("ssh host --command='python -m qwen3_jax.mian --workdir=x'", "-m qwen3_jax.mian: no such module"),
    ("python -m qwen3_jax.evaluate --checkpoint=x --task=y", "--task: no such flag"),
    ("python -m qwen3_jax.chat --checkpoint=x --temprature=1", "--temprature: no such flag"),
    ("python -m launch.local_processes --proceses=2 -- python -m qwen3_jax.main --workdir=w", "--proceses"),
    ("python -m launch.local_sweep --config=experiments/ablations/kl.py --workdir=w --seed=3", "--seed: no such flag"),
    ("launch/gke/runn.sh a b", "launch/gke/runn.sh: no such file"),
    ("pip install '.[tpuu]'", "[tpuu]: pyproject.toml has no such extra"),
    ("make dmeo", "make dmeo"),
  ],
)
def test_wrong_names_are_found(command, wrong, monkeypatch):
  monkeypatch.chdir(ROOT)
  found = list(wrong_names(Block("p", 1, "sh cloud", command)))
  assert any(wrong in line for line in found), found


def test_right_names_are_none_of_them(monkeypatch):
  monkeypatch.chdir(ROOT)
  command = (
    "python -m launch.local_processes --processes=4 --"
    " python -m qwen3_jax.main --config=experiments/miniature.py:post=none --workdir=w --config.cpu_devices=1"
    " --config.pipeline=\"('s1', 's2')\" --profile_steps=1,2 > log & # --not_a_flag"
  )
  assert list(wrong_names(Block("p", 1, "sh cloud", command))) == []
