"""What Tunix's workers share, in their own environment: a Qwen3 of a given shape, and a tokenizer."""

from __future__ import annotations

from typing import Any

from tunix.models.qwen3 import model as qwen3


class Characters:
  """A tokenizer whose tokens are characters; none ends an answer."""

  def encode(self, text: str, **_) -> list[int]:
    return [ord(character) for character in text]

  def decode(self, ids, **_) -> str:
    return "".join(chr(int(id)) for id in ids)

  def bos_id(self) -> int:
    return 1

  def eos_id(self) -> int:
    return 1 << 20

  def pad_id(self) -> int:
    return 0


def model_config(shape: dict[str, Any]) -> qwen3.ModelConfig:
  return qwen3.ModelConfig(
    num_layers=shape["num_layers"],
    vocab_size=shape["vocab_size"],
    embed_dim=shape["hidden_size"],
    hidden_dim=shape["intermediate_size"],
    num_heads=shape["num_heads"],
    head_dim=shape["head_dim"],
    num_kv_heads=shape["num_kv_heads"],
    rope_theta=1_000_000,
    norm_eps=1e-6,
  )
