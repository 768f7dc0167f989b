"""The Qwen3 system in JAX. The names below are loaded at first use, so that importing the package is cheap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from qwen3_jax.data.tokenizer import Tokenizer
  from qwen3_jax.loading import load_pretrained, save_pretrained
  from qwen3_jax.models.config import ModelConfig, model_config
  from qwen3_jax.rollout.generate import generate

__all__ = ["ModelConfig", "Tokenizer", "generate", "load_pretrained", "model_config", "save_pretrained"]

_HOMES = {
  "ModelConfig": "qwen3_jax.models.config",
  "Tokenizer": "qwen3_jax.data.tokenizer",
  "generate": "qwen3_jax.rollout.generate",
  "load_pretrained": "qwen3_jax.loading",
  "model_config": "qwen3_jax.models.config",
  "save_pretrained": "qwen3_jax.loading",
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  value = getattr(importlib.import_module(_HOMES[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
