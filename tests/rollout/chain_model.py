"""A model whose most likely next token depends on the last one alone: scripted answers from the real programs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters, initialize

CONFIG = ModelConfig(
  name="chain",
  vocab_size=512,
  num_layers=2,
  hidden_size=128,
  intermediate_size=64,
  num_heads=4,
  num_kv_heads=2,
  head_dim=32,
  tie_word_embeddings=False,
  max_position_embeddings=512,
)


def chain_model(successors: Mapping[int, int], config: ModelConfig = CONFIG) -> Parameters:
  """Parameters with which greedy decoding goes from each token to its successor; tokens without one end nowhere set."""
  params = jax.tree.map(np.array, initialize(config, 0))
  for name in ("attention", "feed_forward"):  # layers add nothing
    output = "output" if name == "attention" else "down"
    params["layers"][name][output][:] = 0
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(config.vocab_size, config.hidden_size)).astype(np.float32)
  params["embed"]["embedding"] = embedding
  head = np.zeros((config.hidden_size, config.vocab_size), np.float32)
  for token, successor in successors.items():
    head[:, successor] += 0.06 * embedding[token]  # far from certain: log-probabilities are not 0
  params["head"]["kernel"] = head
  return jax.tree.map(jax.numpy.asarray, params)


def chain(*tokens: int) -> dict[int, int]:
  """Successors along a path of different tokens."""
  assert len(set(tokens)) == len(tokens)
  return dict(itertools.pairwise(tokens))


def follow(params: Parameters, start: int, steps: int) -> Sequence[int]:
  """What greedy decoding gives after `start`, without the engine."""
  embedding, head = params["embed"]["embedding"], params["head"]["kernel"]
  tokens = [start]
  for _ in range(steps):
    tokens.append(int(np.argmax(embedding[tokens[-1]] @ head)))
  return tokens[1:]
