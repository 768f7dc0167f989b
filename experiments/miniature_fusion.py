"""Thinking-mode fusion on a laptop: cold start, reasoning RL, then one model with both modes (report, section 4.3).

The thinking samples are the RL model's own right answers to other problems, those without thinking the bare answers.
Problems are of 1 to 8 swaps, so that accuracy rises with the thinking budget.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import miniature_reasoning, recipes
from qwen3_jax.config import corpus, sft_stage, written_fusion
from qwen3_jax.config_loading import parse_arg

TASK = miniature_reasoning.TASKS["mixed_cups"]
STEPS, PROBLEMS = 450, 4000  # problems of each mode
ROWS, SEQUENCE = 16, 304  # of dialogs
BOTH_MODES = {"plain": 0.0, "think": 0.5, "no_think": 0.5}


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS)
  config = miniature_reasoning.get_config("task=mixed_cups")
  config.name = config.model.name = "miniature-fusion"
  add_fusion(config, TASK, STEPS, PROBLEMS)
  return recipes.finish(config, arguments)


def add_fusion(
  config: ConfigDict, task: miniature_reasoning.Task, steps: int, problems: int, sequence: int = SEQUENCE
) -> None:
  """Fusion after reasoning RL, at the end of the pipeline, on dialogs of at most `sequence` tokens."""
  config.data.written.fusion = written_fusion(
    "reasoning_rl",
    problems=task.problems.format(count=problems, seed=4),
    direct_answers=task.problems.format(count=problems, seed=5),
    max_length=task.sequence,
    max_new_tokens=task.answer,
    temperature=1.0,
    slots=256,
    # Most samples in dialogs, where most of the later turns follow an earlier flag: the hardest to obey.
    fusion={
      "samples": 1,
      "at_a_time": 256,
      "most_tokens": sequence,
      "system_prompts": ("",),
      "multi_turn_share": 0.8,
      "later_flag_share": 0.4,
    },
  )
  config.data.corpora.fusion = corpus("written:fusion", validation_fraction=0.04)
  config.pipeline += ("fusion",)
  config.stages.fusion = sft_stage(
    sequence_length=sequence,
    rope_theta=miniature_reasoning.ROPE_THETA,
    batch_size=ROWS,
    tokens=steps * ROWS * sequence,
    mixture={"fusion": 1.0},
    validation_problems=task.held_out,
    evaluate_problems=task.measured,
    evaluate_samples=4,
    evaluate_every=100,
    evaluate_batches=1,
    rollout={"slots": 256, "max_new_tokens": task.answer, "modes": BOTH_MODES},
    optimizer={"schedule": "cosine", "peak_lr": 1e-3, "final_lr": 1e-4, "warmup_steps": 10, "weight_decay": 0.01},
  )
