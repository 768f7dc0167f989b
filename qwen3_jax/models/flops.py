"""Analytic floating-point operations of a training step: the numerator of MFU."""

from __future__ import annotations

from qwen3_jax.models.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
  """Parameters that multiply one token's activations: the active ones without the embedding lookup and the norms."""
  D, H, L = config.hidden_size, config.head_dim, config.num_layers
  attention = 2 * D * H * (config.num_heads + config.num_kv_heads)
  feed_forward = 3 * D * config.intermediate_size
  if config.is_moe:
    feed_forward = feed_forward * config.num_experts_per_token + D * config.num_experts
  return L * (attention + feed_forward) + D * config.vocab_size


def forward_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
  """A third of `training_flops_per_token`: the backward pass costs two forward passes."""
  return training_flops_per_token(config, sequence_length) / 3


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
  """Forward and backward, recomputation not counted, as MFU is defined (PaLM, appendix B).

  6 per matmul parameter, and attention: scores and values, 2 * 2 * N * H per visible key forward, three times that with
  the backward pass, over (T + 1) / 2 visible keys on average (causal; documents are taken to fill the row).
  """
  visible = (sequence_length + 1) / 2
  attention = 12 * config.num_layers * config.num_heads * config.head_dim * visible
  return 6.0 * matmul_parameters(config) + attention
