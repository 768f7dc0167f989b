"""A tokenizer of as many ids as the golden models have rows, and their folders with it beside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.problems.cups import cups_problems, places

IDS = 310  # fewer than rows


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  train_sentencepiece([f"{p.prompt} {' '.join(places(p))}" for p in cups_problems(200, 0)], path, IDS)
  return Tokenizer.from_pretrained(path)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory, golden, tokenizer):
  """`teacher_folder("moe")`: a golden checkpoint with that tokenizer."""

  def make(name: str, with_tokenizer: bool = True) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / name
    shutil.copytree(golden / name, folder, ignore=shutil.ignore_patterns("golden.npz"))
    if with_tokenizer:
      tokenizer.save(folder)
    return folder

  return make
