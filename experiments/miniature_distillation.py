"""Strong-to-weak distillation on a laptop (report, section 4.5 and Table 21).

`teacher=DIR` is the work directory of miniature_reasoning.py:size=large, `answers=DIR` what distillation_data wrote of
its answers. The student, a third of the teacher's size, first learns those (off-policy), then with
`method=distill` from the teacher's predictions of what it writes itself, or with `method=rl` by GRPO from verdicts.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import recipes
from experiments.miniature_reasoning import ROPE_THETA, SFT_ROWS, SMALL, TASKS
from qwen3_jax.config import base_config, corpus, distill_stage, rl_stage, sft_stage, teacher
from qwen3_jax.config_loading import parse_arg

TASK = TASKS["cups"]
OFF_POLICY_STEPS = 200
DISTILL_PROMPTS, DISTILL_STEPS = 128, 20
RL_PROMPTS, RL_SAMPLES, RL_STEPS = 32, 8, 60


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
  config.stages.off_policy = sft_stage(
    sequence_length=2 * TASK.sequence,
    rope_theta=ROPE_THETA,
    batch_size=SFT_ROWS,
    tokens=OFF_POLICY_STEPS * SFT_ROWS * 2 * TASK.sequence,
    mixture={"answers": 1.0},
    evaluate_every=100,
    evaluate_batches=1,
    optimizer={"schedule": "cosine", "peak_lr": 3e-3, "final_lr": 3e-4, "warmup_steps": 10, "weight_decay": 0.01},
  )
  of_both = {
    "problems": "cups:4000:2",
    "validation_problems": "cups:128:3",
    "evaluate_problems": 128,
    "sequence_length": TASK.sequence,
    "rope_theta": ROPE_THETA,
    "evaluate_every": 5,
    "rollout": {"slots": 256, "max_new_tokens": TASK.answer},
  }
  optimizer = {"schedule": "constant", "final_lr": 0.0, "warmup_steps": 5, "weight_decay": 0.01}
  if arguments.method == "distill":
    config.stages.on_policy = distill_stage(
      **of_both,
      batch_size=DISTILL_PROMPTS,
      steps=DISTILL_STEPS,
      teachers={"large": teacher(f"{arguments.teacher}/stages/reasoning_rl", dtype="float32")},
      optimizer={**optimizer, "peak_lr": 1e-3},
    )
  else:
    config.stages.on_policy = rl_stage(
      **of_both,
      batch_size=RL_PROMPTS * RL_SAMPLES,
      samples=RL_SAMPLES,
      steps=RL_STEPS,
      waves=1,
      optimizer={**optimizer, "peak_lr": 5e-4},
    )
  config.pipeline = ("off_policy", "on_policy")
  config.checkpoint.every = 100
  return recipes.finish(config, arguments)
