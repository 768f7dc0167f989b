"""Post-training of the eight sizes: reasoning in the flagships, distillation in the others (report, section 4)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from qwen3_jax.config import corpus, distill_stage, rl_stage, sft_stage, teacher

if TYPE_CHECKING:
  from experiments.recipes import Size

_TEACHERS = {"32b": "qwen3-32b", "235b": "qwen3-235b-a22b"}


def reasoning(config: ConfigDict, size: Size, corpora: str) -> None:
  """Long-CoT cold start, then reasoning RL (report, sections 4.1 and 4.2).

  The folder of corpora holds cold_start.jsonl, conversations that `curation.cold_start` wrote, and reasoning_rl.jsonl
  and reasoning_validation.jsonl, problems that `select_queries` chose: 3,995 in the report. It says that the cold start
  is small in samples and steps, that batches are large with many rollouts a query, that updates are off-policy, and
  that RL took 170 steps; the rest is our choice.
  """
  long = _long(config, size, batch_size=512)
  config.data.corpora.cold_start = corpus(f"chat:{corpora}/cold_start.jsonl")
  config.pipeline += ("cold_start", "reasoning_rl")
  config.stages.cold_start = sft_stage(
    **long,
    tokens=200 * 512 * 32_768,
    mixture={"cold_start": 1.0},
    optimizer={"schedule": "cosine", "peak_lr": 1e-5, "final_lr": 1e-6, "warmup_steps": 10},
    evaluate_every=50,
  )
  config.stages.reasoning_rl = rl_stage(
    **long,
    problems=f"jsonl:{corpora}/reasoning_rl.jsonl",
    validation_problems=f"jsonl:{corpora}/reasoning_validation.jsonl",
    minibatches=4,  # 128 problems with 16 answers each
    samples=16,
    steps=4 * 170,
    evaluate_every=40,
    overlong="penalize",
    overlong_tokens=4096,
    rollout={"max_new_tokens": 30_720, "slots": 1024, "staleness": 1},
    entropy={"gain": 0.001, "maximum": 0.01},
    optimizer={"schedule": "constant", "peak_lr": 1e-6, "final_lr": 0.0, "warmup_steps": 10, "weight_decay": 0.0},
  )


def distillation(config: ConfigDict, size: Size, arguments: SimpleNamespace, large_expert_shards: int) -> None:
  """Strong-to-weak distillation, off-policy and then on-policy (report, section 4.5).

  The folder of corpora holds teacher_answers, which `distillation_data` prepared from the teacher's answers in both
  modes, and distillation.jsonl and distillation_validation.jsonl, problems. The report gives no numbers but the cost, a
  tenth of RL's; the rest is our choice. The teacher lies on the student's devices, split in its own way.
  """
  config.data.corpora.teacher_answers = corpus(f"prepared:{arguments.corpora}/teacher_answers")
  config.pipeline += ("distill_off_policy", "distill_on_policy")
  config.stages.distill_off_policy = sft_stage(
    **_long(config, size, batch_size=512),
    tokens=1000 * 512 * 32_768,
    mixture={"teacher_answers": 1.0},
    optimizer={"schedule": "cosine", "peak_lr": 2e-5, "final_lr": 2e-6, "warmup_steps": 20},
    evaluate_every=100,
  )
  is_large = arguments.teacher_size == "235b"
  config.stages.distill_on_policy = distill_stage(
    **_long(config, size, batch_size=512),
    problems=f"jsonl:{arguments.corpora}/distillation.jsonl",
    validation_problems=f"jsonl:{arguments.corpora}/distillation_validation.jsonl",
    steps=200,
    evaluate_every=20,
    teachers={
      arguments.teacher_size: teacher(
        arguments.teacher,
        model=_TEACHERS[arguments.teacher_size],
        mesh={"fsdp": -1, "expert": large_expert_shards if is_large else 1},
      )
    },
    rollout={
      "max_new_tokens": 30_720,
      "slots": 1024,
      "staleness": 1,
      "modes": {"plain": 0.0, "think": 0.5, "no_think": 0.5},
    },
    optimizer={"schedule": "constant", "peak_lr": 1e-6, "final_lr": 0.0, "warmup_steps": 10, "weight_decay": 0.0},
  )


def _long(config: ConfigDict, size: Size, batch_size: int) -> dict[str, Any]:
  """What stages with long answers share."""
  length = 32_768
  return {
    "sequence_length": length,
    "batch_size": batch_size,
    "micro_batches": size.micro_batches(batch_size, length),
    "mesh": {"context": size.context(length)},
    **({"balance_counts": "running"} if config.model.num_experts else {}),
  }
