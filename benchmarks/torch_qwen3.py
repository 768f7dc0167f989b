"""The same Qwen3 training step in plain eager PyTorch: the peer of `benchmarks/train_cpu.py`.

As fast as eager PyTorch is without custom kernels: scaled_dot_product_attention, F.rms_norm, fused projections, fused
AdamW. Letters in shapes: B batch, T length, D hidden, N query heads, K key/value heads, H head_dim, F feed-forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Shape:
  """What the step computes; the names are ModelConfig's."""

  vocab_size: int
  num_layers: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  num_kv_heads: int
  head_dim: int


class Norm(nn.Module):
  def __init__(self, size: int):
    super().__init__()
    self.scale = nn.Parameter(torch.ones(size))

  def forward(self, x: Tensor) -> Tensor:
    return functional.rms_norm(x, self.scale.shape, self.scale, 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
  """RoPE over the last axis; x [B, T, N, H], cos and sin [B, T, 1, H]."""
  first, second = x.chunk(2, -1)
  return x * cos + torch.cat((-second, first), -1) * sin


class Layer(nn.Module):
  def __init__(self, shape: Shape):
    super().__init__()
    D, N, K, H, F = (
      shape.hidden_size,
      shape.num_heads,
      shape.num_kv_heads,
      shape.head_dim,
      shape.intermediate_size,
    )
    self.heads = (N, K, K)
    self.head_dim = H
    self.attention_norm, self.feed_forward_norm = Norm(D), Norm(D)
    self.query_norm, self.key_norm = Norm(H), Norm(H)
    self.qkv = nn.Linear(D, (N + 2 * K) * H, bias=False)
    self.output = nn.Linear(N * H, D, bias=False)
    self.gate_up = nn.Linear(D, 2 * F, bias=False)
    self.down = nn.Linear(F, D, bias=False)

  def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    B, T, _ = x.shape
    q, k, v = self.qkv(self.attention_norm(x)).view(B, T, -1, self.head_dim).split(self.heads, 2)
    q = rotate(self.query_norm(q), cos, sin)
    k = rotate(self.key_norm(k), cos, sin)
    attended = functional.scaled_dot_product_attention(
      q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    x = x + self.output(attended.transpose(1, 2).reshape(B, T, -1))
    gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, -1)
    return x + self.down(functional.silu(gate) * up)


class Qwen3(nn.Module):
  """Tied embeddings; `forward` returns the mean next-token loss."""

  def __init__(self, shape: Shape):
    super().__init__()
    self.embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
    self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
    self.final_norm = Norm(shape.hidden_size)
    self.head_dim = shape.head_dim
    for parameter in self.parameters():
      if parameter.ndim > 1:
        nn.init.normal_(parameter, std=0.02)

  def forward(self, tokens: Tensor, targets: Tensor, positions: Tensor, segment_ids: Tensor | None) -> Tensor:
    frequencies = 1e4 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
    angles = (positions[..., None] * frequencies)[:, :, None]
    cos, sin = angles.cos().repeat(1, 1, 1, 2), angles.sin().repeat(1, 1, 1, 2)
    mask = None
    if segment_ids is not None:
      mask = (segment_ids[:, :, None] == segment_ids[:, None, :]).tril()[:, None]
    x = self.embedding(tokens)
    for layer in self.layers:
      x = layer(x, cos, sin, mask)
    logits = functional.linear(self.final_norm(x), self.embedding.weight)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_step(shape: Shape, *, threads: int, packed: bool, seed: int = 0) -> Callable[..., float]:
  """`step(tokens, targets, positions, segment_ids) -> loss`: forward, backward, clip to norm 1, AdamW.

  Arrays are numpy [B, T]. `packed=False` ignores segment_ids and lets PyTorch use its causal kernel without a mask.
  """
  torch.set_num_threads(threads)
  torch.manual_seed(seed)
  model = Qwen3(shape)
  matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
  vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
  groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)

  def step(tokens: np.ndarray, targets: np.ndarray, positions: np.ndarray, segment_ids: np.ndarray) -> float:
    as_long = [torch.from_numpy(array).long() for array in (tokens, targets, positions)]
    loss = model(*as_long, torch.from_numpy(segment_ids) if packed else None)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  return step
