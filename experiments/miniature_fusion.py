"""Thinking-mode fusion on a laptop: cold start, reasoning RL, then one model with both modes (report, section 4.3).

The thinking samples are the RL model's own right answers to other problems, those without thinking the bare answers.
Problems are of 1 to 8 swaps, so that accuracy rises with the thinking budget.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import miniature_reasoning, recipes
from qwen3_jax.config import corpus, sft_stage, written
from qwen3_jax.config_loading import parse_arg

TASK = miniature_reasoning.TASKS["mixed_cups"]
SEQUENCE = 256  # of a dialog
ROWS = 16
STEPS = 150


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS)
  config = miniature_reasoning.get_config("task=mixed_cups")
  config.name = config.model.name = "miniature-fusion"
  config.data.written.fusion = written(
    "reasoning_rl",
    problems=TASK.problems.format(count=1500, seed=4),
    direct_answers=TASK.problems.format(count=1500, seed=5),
    max_length=TASK.sequence,
    max_new_tokens=TASK.answer,
    temperature=1.0,
    slots=256,
    fusion={"samples": 1, "at_a_time": 256, "most_tokens": SEQUENCE, "system_prompts": ("",)},
  )
  config.data.corpora.fusion = corpus("written:fusion", validation_fraction=0.04)
  config.pipeline += ("fusion",)
  config.stages.fusion = sft_stage(
    sequence_length=SEQUENCE,
    rope_theta=miniature_reasoning.ROPE_THETA,
    batch_size=ROWS,
    tokens=STEPS * ROWS * SEQUENCE,
    mixture={"fusion": 1.0},
    validation_problems=TASK.problems.format(count=128, seed=3),
    evaluate_problems=128,
    evaluate_samples=4,
    evaluate_every=50,
    evaluate_batches=1,
    rollout={
      "slots": 256,
      "max_new_tokens": TASK.answer,
      "modes": {"plain": 0.0, "think": 0.5, "no_think": 0.5},
    },
    optimizer={"schedule": "cosine", "peak_lr": 1e-3, "final_lr": 1e-4, "warmup_steps": 10, "weight_decay": 0.01},
  )
  return recipes.finish(config, arguments)
