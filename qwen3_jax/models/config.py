"""ModelConfig: what a Qwen3 model is, the eight released sizes, and Hugging Face's two spellings of it.

Letters used for shapes everywhere in this project:
  B batch, T query length, S key length, D hidden, N query heads, K key/value heads, H head_dim,
  F feed-forward (one expert's, when MoE), E experts, V vocabulary rows, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from qwen3_jax import nearest

DTYPES = ("float32", "bfloat16")  # of parameters and computation
REMAT_POLICIES = ("none", "dots", "attention", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture (Qwen3 report, Tables 1-2), then how it is computed.

  `num_experts == 0` is a dense model. `yarn_factor == 1.0` is plain RoPE.
  """

  name: str = "qwen3"
  vocab_size: int = 151_936  # V; 151,669 of the released rows are used
  num_layers: int = 28  # L
  hidden_size: int = 1024  # D
  intermediate_size: int = 3072  # F; of one expert when num_experts > 0
  num_heads: int = 16  # N
  num_kv_heads: int = 8  # K
  head_dim: int = 128  # H; N * H need not equal D
  tie_word_embeddings: bool = True
  qk_norm: bool = True  # RMSNorm of queries and keys, by head; False only to measure what it is worth
  rms_norm_eps: float = 1e-6
  rope_theta: float = 1e6  # base; 1e4 in S1 and S2, 1e6 from S3 on (ABF)
  yarn_factor: float = 1.0
  yarn_original_length: int = 32_768
  max_position_embeddings: int = 40_960
  initializer_range: float = 0.02  # std of every matrix at initialisation
  # Mixture of experts.
  num_experts: int = 0  # E
  num_experts_per_token: int = 8
  norm_topk_prob: bool = True  # renormalise the chosen experts' probabilities
  router_aux_loss_coef: float = 1e-3  # weight of the global-batch balance loss
  # How it is computed: none of these changes the function beyond rounding.
  dtype: str = "float32"  # of activations and matmul inputs
  param_dtype: str = "float32"  # of stored parameters
  remat: str = "none"  # one of REMAT_POLICIES: what the backward pass recomputes
  offload_layer_inputs: bool = False  # what remat keeps of a layer's input waits in the host's memory
  expert_dispatch_tokens: int = 2048  # tokens of a device that are sent to experts at a time
  expert_buffer: float = 1.25  # rows an expert shard receives in a round, over the balanced load
  unroll_layers: bool = False  # unroll the scan over layers (faster on CPU, slower to compile)

  def __post_init__(self):
    problems = []
    sizes = ("vocab_size", "num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
    for field in sizes:
      if getattr(self, field) < 1:
        problems.append(f"{field}={getattr(self, field)} must be at least 1")
    if self.num_kv_heads >= 1 and self.num_heads % self.num_kv_heads:
      problems.append(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
    if self.head_dim % 2:
      problems.append(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
    if self.num_experts < 0:
      problems.append(f"num_experts={self.num_experts} must not be negative")
    if self.num_experts and not 1 <= self.num_experts_per_token <= self.num_experts:
      chosen = self.num_experts_per_token
      problems.append(f"num_experts_per_token={chosen} must lie in 1..num_experts={self.num_experts}")
    if self.remat not in REMAT_POLICIES:
      problems.append(f"remat={self.remat!r} must be one of {', '.join(REMAT_POLICIES)}")
    if self.offload_layer_inputs and self.remat == "none":
      problems.append("offload_layer_inputs=True needs remat, which remat='none' switches off")
    if self.expert_dispatch_tokens < 1:
      problems.append(f"expert_dispatch_tokens={self.expert_dispatch_tokens} must be at least 1")
    if self.expert_buffer <= 0.0:
      problems.append(f"expert_buffer={self.expert_buffer} must be positive")
    if self.yarn_factor < 1.0:
      problems.append(f"yarn_factor={self.yarn_factor} must be at least 1.0 (1.0 switches YaRN off)")
    if problems:
      raise ValueError(f"ModelConfig {self.name!r}: " + "; ".join(problems))

  @property
  def is_moe(self) -> bool:
    return self.num_experts > 0

  def replace(self, **changes: Any) -> ModelConfig:
    """A copy with `changes`; unknown names are an error."""
    return dataclasses.replace(self, **changes)

  def _parameters(self, experts: int) -> int:
    D, H, F = self.hidden_size, self.head_dim, self.intermediate_size
    attention = D * H * (2 * self.num_heads + 2 * self.num_kv_heads) + (2 * H if self.qk_norm else 0)
    feed_forward = experts * 3 * D * F + D * self.num_experts if self.is_moe else 3 * D * F
    embeddings = self.vocab_size * D * (1 if self.tie_word_embeddings else 2)
    return embeddings + self.num_layers * (attention + feed_forward + 2 * D) + D

  def parameter_count(self) -> int:
    """Exact number of parameters, embeddings included."""
    return self._parameters(self.num_experts)

  def active_parameter_count(self) -> int:
    """Parameters one token uses: all of them when dense, the chosen experts' when MoE."""
    return self._parameters(self.num_experts_per_token if self.is_moe else 0)

  @classmethod
  def from_hf(cls, hf: dict[str, Any]) -> ModelConfig:
    """From a Hugging Face `config.json`, in the spelling of transformers 4 or 5.

    Raises ValueError for another model family and for features that Qwen3 does not have.
    """
    kind = hf.get("model_type")
    if kind not in ("qwen3", "qwen3_moe"):
      raise ValueError(f"config.json: model_type={kind!r}, expected 'qwen3' or 'qwen3_moe'")
    moe = kind == "qwen3_moe"
    required = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"]
    required.append("moe_intermediate_size" if moe else "intermediate_size")
    missing = [key for key in required if key not in hf]
    if missing:
      raise ValueError(f"config.json: missing {', '.join(missing)}")
    unsupported = []
    if hf.get("attention_bias"):
      unsupported.append("attention_bias=true")
    if hf.get("hidden_act", "silu") != "silu":
      unsupported.append(f"hidden_act={hf['hidden_act']!r}")
    if hf.get("use_sliding_window"):
      unsupported.append("use_sliding_window=true")
    if moe and (hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1):
      unsupported.append("dense layers inside a MoE model (mlp_only_layers, decoder_sparse_step)")
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "yarn"):
      unsupported.append(f"rope_type={rope_type!r}")
    if unsupported:
      raise ValueError("config.json: not supported: " + "; ".join(unsupported))
    heads = hf["num_attention_heads"]
    max_positions = hf.get("max_position_embeddings", 32_768)
    yarn = rope_type == "yarn"
    fields: dict[str, Any] = {
      "name": hf.get("_name_or_path") or kind,
      "vocab_size": hf["vocab_size"],
      "num_layers": hf["num_hidden_layers"],
      "hidden_size": hf["hidden_size"],
      "intermediate_size": hf["moe_intermediate_size" if moe else "intermediate_size"],
      "num_heads": heads,
      "num_kv_heads": hf.get("num_key_value_heads") or heads,
      # The dense reference defaults to 128, the MoE reference derives it.
      "head_dim": hf.get("head_dim") or (hf["hidden_size"] // heads if moe else 128),
      "tie_word_embeddings": hf.get("tie_word_embeddings", False),
      "qk_norm": hf.get("qk_norm", True),  # ours alone: transformers' Qwen3 always has it
      "rms_norm_eps": hf.get("rms_norm_eps", 1e-6),
      "rope_theta": float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0))),
      "yarn_factor": float(rope["factor"]) if yarn else 1.0,
      "yarn_original_length": int(rope.get("original_max_position_embeddings") or max_positions)
      if yarn
      else max_positions,
      "max_position_embeddings": max_positions,
      "initializer_range": hf.get("initializer_range", 0.02),
    }
    if moe:
      experts = hf.get("num_experts", hf.get("num_local_experts", 128))
      fields |= {
        "num_experts": experts,
        "num_experts_per_token": hf.get("num_experts_per_tok", 8),
        "norm_topk_prob": hf.get("norm_topk_prob", False),
        "router_aux_loss_coef": hf.get("router_aux_loss_coef", 1e-3),
      }
    return cls(**fields)

  def to_hf(self) -> dict[str, Any]:
    """The `config.json` that transformers 4 and 5 both read; without QK-Norm, `from_hf` alone understands it."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
    if self.yarn_factor != 1.0:
      rope = {
        "rope_type": "yarn",
        "rope_theta": self.rope_theta,
        "factor": self.yarn_factor,
        "original_max_position_embeddings": self.yarn_original_length,
      }
    hf: dict[str, Any] = {
      "architectures": ["Qwen3MoeForCausalLM" if self.is_moe else "Qwen3ForCausalLM"],
      "model_type": "qwen3_moe" if self.is_moe else "qwen3",
      "vocab_size": self.vocab_size,
      "hidden_size": self.hidden_size,
      "intermediate_size": self.intermediate_size,
      "num_hidden_layers": self.num_layers,
      "num_attention_heads": self.num_heads,
      "num_key_value_heads": self.num_kv_heads,
      "head_dim": self.head_dim,
      "hidden_act": "silu",
      "attention_bias": False,
      "attention_dropout": 0.0,
      "rms_norm_eps": self.rms_norm_eps,
      "initializer_range": self.initializer_range,
      "max_position_embeddings": self.max_position_embeddings,
      "rope_theta": self.rope_theta,
      "rope_scaling": None if self.yarn_factor == 1.0 else rope,
      "rope_parameters": rope,
      "tie_word_embeddings": self.tie_word_embeddings,
      "use_sliding_window": False,
      "sliding_window": None,
      "use_cache": True,
    }
    if not self.qk_norm:
      hf["qk_norm"] = False
    if self.is_moe:
      hf |= {
        "moe_intermediate_size": self.intermediate_size,
        "num_experts": self.num_experts,
        "num_local_experts": self.num_experts,
        "num_experts_per_tok": self.num_experts_per_token,
        "norm_topk_prob": self.norm_topk_prob,
        "router_aux_loss_coef": self.router_aux_loss_coef,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
      }
    return hf


def _dense(name: str, L: int, D: int, F: int, N: int, tied: bool) -> ModelConfig:
  return ModelConfig(
    name=name, num_layers=L, hidden_size=D, intermediate_size=F, num_heads=N, num_kv_heads=8, tie_word_embeddings=tied
  )


def _moe(name: str, L: int, D: int, F: int, N: int) -> ModelConfig:
  return ModelConfig(
    name=name,
    num_layers=L,
    hidden_size=D,
    intermediate_size=F,
    num_heads=N,
    num_kv_heads=4,
    tie_word_embeddings=False,
    num_experts=128,
  )


MODELS: dict[str, ModelConfig] = {
  config.name: config
  for config in (
    _dense("qwen3-0.6b", 28, 1024, 3072, 16, tied=True),
    _dense("qwen3-1.7b", 28, 2048, 6144, 16, tied=True),
    _dense("qwen3-4b", 36, 2560, 9728, 32, tied=True),
    _dense("qwen3-8b", 36, 4096, 12288, 32, tied=False),
    _dense("qwen3-14b", 40, 5120, 17408, 40, tied=False),
    _dense("qwen3-32b", 64, 5120, 25600, 64, tied=False),
    _moe("qwen3-30b-a3b", 48, 2048, 768, 32),
    _moe("qwen3-235b-a22b", 94, 4096, 1536, 64),
  )
}


def model_config(name: str) -> ModelConfig:
  """One of the eight released sizes, e.g. `model_config("qwen3-0.6b")`."""
  if name not in MODELS:
    hint = nearest.sentence(name.lower(), MODELS)
    raise ValueError(f"Unknown model {name!r}.{hint} Known: {', '.join(MODELS)}")
  return MODELS[name]
