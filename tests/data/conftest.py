"""Tokenizers that several tests read."""

import lzma
import sysconfig
from pathlib import Path

import pytest

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.train_tokenizer import train_sentencepiece

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def standard_library() -> list[str]:
  """1.5 MB of sources of this Python's standard library, in a fixed order."""
  texts: list[str] = []
  for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
    texts.append(file.read_text(encoding="utf-8", errors="replace"))
    if sum(map(len, texts)) > 1.5e6:
      break
  return texts


@pytest.fixture(scope="session")
def qwen_path(tmp_path_factory) -> Path:
  """The released rank file."""
  path = tmp_path_factory.mktemp("qwen") / "qwen.tiktoken"
  path.write_bytes(lzma.decompress((GOLDEN / "qwen.tiktoken.xz").read_bytes()))
  return path


@pytest.fixture(scope="session")
def qwen(qwen_path) -> Tokenizer:
  return Tokenizer.from_pretrained(qwen_path)


@pytest.fixture(scope="session")
def small_path(tmp_path_factory, standard_library) -> Path:
  """A SentencePiece model trained here."""
  path = tmp_path_factory.mktemp("small") / "tokenizer.model"
  multilingual = ["Привет, мир. " * 200, "你好，世界。" * 200, "مرحبا بالعالم " * 200]
  train_sentencepiece([*multilingual, *standard_library], path, vocab_size=2048)
  return path


@pytest.fixture(scope="session")
def small(small_path) -> Tokenizer:
  return Tokenizer.from_pretrained(small_path)
