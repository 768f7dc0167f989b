"""What the tests of rollouts share."""

from __future__ import annotations

import dataclasses
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.rollout import dense_slots

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
  """512 ids, as the golden models have."""
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  texts = [file.read_text(errors="replace") for file in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-c]*.py"))]
  train_sentencepiece(texts, path, vocab_size=512)
  return Tokenizer.from_pretrained(path)


@pytest.fixture(autouse=True)
def one_length(request, monkeypatch):
  """A dense cache of full length from the start: compiling takes most of a test. Of tests marked `grows`, it grows."""
  monkeypatch.setattr(dense_slots, "_SHORTEST", 48 if "grows" in request.keywords else 1 << 20)


@dataclasses.dataclass
class Compilations:
  count: int = 0

  def __call__(self, event: str, seconds: float, **_) -> None:
    self.count += event == COMPILE_EVENT


@pytest.fixture
def compilations() -> Iterator[Compilations]:
  """Counts the programs that are compiled, or read from the cache, while a test runs."""
  counter = Compilations()
  jax.monitoring.register_event_duration_secs_listener(counter)
  yield counter
  jax.monitoring.unregister_event_duration_listener(counter)
