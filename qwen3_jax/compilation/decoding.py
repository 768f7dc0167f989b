"""Report of decoding: whether it fits, how many tokens the cache holds, how fast HBM lets it be."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.compilation.compiler import lower
from qwen3_jax.compilation.memory import device_bytes
from qwen3_jax.compilation.report import Report, compile_report
from qwen3_jax.compilation.topologies import Topology
from qwen3_jax.config import make_model_config
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.rollout.decode_program import DecodeProgram, page_bytes_of_device
from qwen3_jax.rollout.decoding_mesh import decoding_shape
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.sharding import batch_shards, make_mesh

_RESERVED = 0.06  # of HBM, for what a step works with
CONTEXTS = (1024, 4096, 16_384, 32_768)  # tokens a sequence


def decode_report(config: ConfigDict, topology: Topology, settings: EngineSettings) -> Report:
  """Of the config's model in bfloat16, on as large a cache as the devices hold beside it."""
  model = make_model_config(
    config.model, dtype="bfloat16", param_dtype="bfloat16", remat="none", offload_layer_inputs=False
  )
  mesh = make_mesh(decoding_shape(model, topology.device_count), topology.devices())
  context = settings.max_length  # of every slot: what the kernel states its cost for, too
  parameters = device_bytes(DecodeProgram(model, settings, 1, context).arguments(mesh)["parameters"])
  page = page_bytes_of_device(model, settings, mesh)
  limit = topology.chip.hbm_limit
  pages = max(1, int(limit * (1 - _RESERVED) - parameters) // page)
  program = DecodeProgram(model, settings, pages, context)
  report = {"name": f"{config.name} decoding", "stage": "decode"} | compile_report(
    program, lower(program, mesh), mesh, topology
  )
  tokens = pages * settings.page_size * batch_shards(mesh)
  bounds = [
    _hbm_bound(model, mesh, topology, parameters, page / settings.page_size, tokens, length) for length in CONTEXTS
  ]
  return report | {
    "decoding": {
      "slots": settings.slots,
      "max_length": settings.max_length,
      "cache_dtype": settings.cache_dtype or model.dtype,
      "cache_tokens": tokens,
      "cache_bytes_per_token_and_device": page // settings.page_size,
      "hbm_bound": bounds,
    }
  }


def _hbm_bound(
  model: ModelConfig, mesh: Mesh, topology: Topology, parameters: int, token_bytes: float, tokens: int, context: int
) -> Mapping[str, float]:
  """Tokens/s if a step only read what it must: parameters, those of experts that are chosen, and keys and values.

  As many sequences of `context` tokens as the cache holds; and one, for the latency.
  """
  bandwidth = topology.chip.device_hbm_bandwidth

  def seconds(sequences: int) -> float:
    unused = 0.0
    if model.is_moe:  # an expert is read if any token chooses it; taken to choose evenly
      D, F = model.hidden_size, model.intermediate_size
      of_experts = 2 * model.num_layers * model.num_experts * 3 * D * F / (mesh.shape["expert"] * mesh.shape["tensor"])
      unused = of_experts * (1 - model.num_experts_per_token / model.num_experts) ** sequences
    of_shard = -(-sequences // batch_shards(mesh))
    return (parameters - unused + of_shard * context * token_bytes) / bandwidth

  sequences = max(1, tokens // context)
  return {
    "context": context,
    "sequences": sequences,
    "tokens_per_second": sequences / seconds(sequences),
    "tokens_per_second_of_one": 1 / seconds(1),
  }
