"""Usage: what calls of models took."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable

from qwen3_jax.language_models.language_model import Reply


@dataclasses.dataclass
class Usage:
  """Counts of replies and tokens; several threads may add to one."""

  replies: int = 0  # that a model wrote
  failed: int = 0  # requests' samples that failed for good
  retries: int = 0  # attempts after a first one
  cached: int = 0  # replies that were kept and not asked for again; their tokens are not counted here
  prompt_tokens: int = 0
  completion_tokens: int = 0

  def __post_init__(self):
    self._lock = threading.Lock()

  def add(self, replies: Iterable[Reply]) -> None:
    for reply in replies:
      with self._lock:
        if reply.finish_reason == "error":
          self.failed += 1
          continue
        self.replies += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

  def add_retry(self) -> None:
    with self._lock:
      self.retries += 1

  def add_cached(self, replies: int) -> None:
    with self._lock:
      self.cached += replies

  def as_dict(self) -> dict[str, int]:
    with self._lock:
      return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
