"""A finished run and its report."""

import shutil

import pytest
from report_pages import Page, report_page, write_run

from qwen3_jax.workdir import Workdir


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workdir:
  workdir = Workdir(tmp_path_factory.mktemp("run") / "workdir")
  write_run(workdir)
  return workdir


@pytest.fixture
def run(finished, tmp_path) -> Workdir:
  """A copy to damage."""
  return Workdir(shutil.copytree(finished.path, tmp_path / "workdir"))


@pytest.fixture(scope="session")
def page(finished) -> Page:
  return report_page(finished)
