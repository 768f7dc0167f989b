"""Strong-to-weak distillation on a laptop (report, section 4.5 and Table 21).

`teacher=DIR` is the work directory of miniature_reasoning.py:size=large, `answers=DIR` what distillation_data wrote of
its answers. The student, a third of the teacher's size, first learns those (off-policy), then with
`method=distill` from the teacher's predictions of what it writes itself, or with `method=rl` by GRPO from verdicts.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from experiments import recipes
from experiments.miniature_reasoning import ROPE_THETA, SMALL, TASKS, TRAINED, Task, grpo_stage
from qwen3_jax.config import base_config, corpus, distill_stage, sft_stage, teacher
from qwen3_jax.config_loading import parse_arg

TASK = TASKS["cups"]
OFF_POLICY_STEPS = 200
# Every token teaches: few prompts a step are enough, and more steps worth more.
DISTILL_PROMPTS, DISTILL_STEPS = 32, 32
DISTILL_LR = 5e-4
EVALUATE_EVERY = 8


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, teacher="teacher", answers="answers", method=("distill", "rl"))
  config = base_config()
  config.name = f"miniature-distillation-{arguments.method}"
  config.model.update(SMALL)
  config.model.update(name=config.name, vocab_size=TASK.vocabulary, unroll_layers=True)
  config.tokenizer.path = f"{arguments.teacher}/tokenizer"
  config.cpu_devices = 2
  config.mesh.update(data=-1, fsdp=1)
  config.data.corpora.answers = corpus(f"chat:{arguments.answers}/answers.jsonl", validation_fraction=0.04)
  config.stages.off_policy = off_policy_stage(TASK, OFF_POLICY_STEPS)
  if arguments.method == "distill":
    config.stages.on_policy = on_policy_stage(TASK, DISTILL_STEPS, f"{arguments.teacher}/stages/reasoning_rl")
  else:
    config.stages.on_policy = grpo_stage(TASK)
    config.stages.on_policy.evaluate_every = EVALUATE_EVERY
  config.pipeline = ("off_policy", "on_policy")
  config.checkpoint.every = 100
  return recipes.finish(config, arguments)


def off_policy_stage(task: Task, steps: int, **changes: Any) -> ConfigDict:
  """Learns a corpus `answers`."""
  return sft_stage(
    sequence_length=2 * task.sequence,
    rope_theta=ROPE_THETA,
    batch_size=task.sft_rows,
    tokens=steps * task.sft_rows * 2 * task.sequence,
    mixture={"answers": 1.0},
    evaluate_every=100,
    evaluate_batches=1,
    # The next stage anneals it.
    optimizer={"schedule": "cosine", "peak_lr": 3e-3, "final_lr": 1e-3, "warmup_steps": 10, "weight_decay": 0.01},
    **changes,
  )


def on_policy_stage(task: Task, steps: int, path: str, **changes: Any) -> ConfigDict:
  """Learns from the teacher at `path`."""
  return distill_stage(
    problems=task.problems.format(count=4000, seed=TRAINED),
    validation_problems=task.held_out,
    evaluate_problems=task.measured,
    sequence_length=task.sequence,
    rope_theta=ROPE_THETA,
    evaluate_every=EVALUATE_EVERY,
    batch_size=DISTILL_PROMPTS,
    steps=steps,
    teachers={"large": teacher(path, dtype="float32")},
    optimizer={
      "schedule": "cosine",
      "peak_lr": DISTILL_LR,
      "final_lr": DISTILL_LR / 20,
      "warmup_steps": 2,
      "weight_decay": 0.01,
    },
    **{"rollout": {"slots": 256, "max_new_tokens": task.answer}, **changes},
  )
