"""Reasoning on a laptop: a cold start from written traces, then GRPO on fresh problems.

`task=cups` (the default), `mixed_cups` (of 1 to 8 swaps), `chain_sum` or `letter_counting`, the last two of them
families of reasoning-gym, whose steps are learned from worked solutions first. The cold start reads few traces, most of
which are hasty: the model can think, but often does not. GRPO finds that thinking pays. `size=large` trains a teacher
for experiments/miniature_distillation.py.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import recipes
from qwen3_jax.config import base_config, corpus, rl_stage, sft_stage
from qwen3_jax.config_loading import parse_arg

SMALL = {
  "hidden_size": 96,
  "intermediate_size": 288,
  "num_layers": 4,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 24,
  "tie_word_embeddings": True,
  "initializer_range": 0.08,  # so narrow a model would lie on a plateau for long with 0.02
}
# A teacher for the small one: experiments/miniature_distillation.py.
LARGE = {
  **SMALL,
  "hidden_size": 160,
  "intermediate_size": 448,
  "num_layers": 5,
  "num_heads": 5,
  "num_kv_heads": 1,
  "head_dim": 32,
  "initializer_range": 0.06,
}
PEAK_LR = {"small": 3e-3, "large": 2e-3}


class Task(NamedTuple):
  problems: str  # spec of the problems, {count} and {seed} to be filled in
  vocabulary: int
  sequence: int  # tokens of prompt and answer, at most
  answer: int  # tokens of an answer, at most
  worked: int = 0  # worked solutions to learn from before the cold start
  worked_steps: int = 0
  hasty: float = 0.65  # share of the cold start's traces
  traces: int = 6000
  sft_steps: int = 550
  sft_rows: int = 32  # a step, of two or more conversations each
  rl_steps: int = 60
  rl_lr: float = 5e-4
  entropy: float = 0.02  # its target, nats a token
  measured: int = 128  # held-out problems of an evaluation

  @property
  def held_out(self) -> str:
    return self.problems.format(count=self.measured, seed=HELD_OUT)


TASKS = {
  "cups": Task("cups:{count}:{seed}", vocabulary=320, sequence=48, answer=20),
  "mixed_cups": Task(
    "cups:{count}:{seed}:1-8:numbered",
    vocabulary=340,
    sequence=80,
    answer=38,
    hasty=0.65,
    traces=10_000,
    sft_steps=500,
    rl_steps=40,
    rl_lr=3e-4,
  ),
  "chain_sum": Task(
    'reasoning-gym:chain_sum:{count}:{seed}:{{"chain_sum": {{"max_digits": 1, "min_terms": 10, "max_terms": 10}}}}',
    vocabulary=400,
    sequence=104,
    answer=47,
    worked=30_000,
    worked_steps=1000,
    hasty=0.55,
    traces=12_000,
    sft_steps=400,
    sft_rows=16,
    rl_steps=40,
    rl_lr=2e-4,
    entropy=0.008,
  ),
  "letter_counting": Task(
    'reasoning-gym:letter_counting:{count}:{seed}:{{"letter_counting": {{"min_words": 4, "max_words": 5}}}}',
    vocabulary=700,
    sequence=128,
    answer=80,
    worked=24_000,
    worked_steps=900,
    hasty=0.85,
    traces=12_000,
    sft_steps=400,
    sft_rows=16,
    rl_steps=40,
    rl_lr=2e-4,
    entropy=0.08,
  ),
}
ROPE_THETA = 1e4  # sequences are short
PROMPTS, SAMPLES = 32, 8
TRACES, TRAINED, HELD_OUT, WORKED = 1, 2, 3, 4  # seeds of problems


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, task=tuple(TASKS), size=("small", "large"))
  task = TASKS[arguments.task]
  config = base_config()
  config.name = f"miniature-reasoning-{arguments.task}"
  config.model.update(LARGE if arguments.size == "large" else SMALL)
  config.model.update(name=config.name, vocab_size=task.vocabulary, unroll_layers=True)
  config.tokenizer.train_vocab_size = task.vocabulary
  config.cpu_devices = 2
  config.mesh.update(data=-1, fsdp=1)
  add_reasoning(config, task, PEAK_LR[arguments.size])
  config.checkpoint.every = 100
  return recipes.finish(config, arguments)


def add_reasoning(config: ConfigDict, task: Task, peak_lr: float) -> None:
  """The stages, at the end of the pipeline."""
  if task.worked:
    worked = task._replace(hasty=0.0, traces=task.worked, sft_steps=task.worked_steps)
    config.data.corpora.worked = corpus(traces_source(worked, WORKED), validation_fraction=0.02)
    config.pipeline += ("worked",)
    config.stages.worked = traces_stage(worked, "worked", peak_lr, "constant")
  config.data.corpora.traces = corpus(traces_source(task), validation_fraction=0.04)
  config.pipeline += ("cold_start", "reasoning_rl")
  config.stages.cold_start = traces_stage(task, "traces", peak_lr, "cosine")
  config.stages.reasoning_rl = grpo_stage(task)


def traces_stage(task: Task, traces: str, peak_lr: float, schedule: str) -> ConfigDict:
  return sft_stage(
    sequence_length=2 * task.sequence,
    rope_theta=ROPE_THETA,
    batch_size=task.sft_rows,
    tokens=task.sft_steps * task.sft_rows * 2 * task.sequence,
    mixture={traces: 1.0},
    evaluate_every=100,
    evaluate_batches=1,
    optimizer={
      "schedule": schedule,
      "peak_lr": peak_lr,
      "final_lr": peak_lr / 10,
      "warmup_steps": 10,
      "weight_decay": 0.01,
    },
  )


def traces_source(task: Task, seed: int = TRACES) -> str:
  return f"traces:{task.hasty}:{task.problems.format(count=task.traces, seed=seed)}"


def grpo_stage(task: Task) -> ConfigDict:
  return rl_stage(
    problems=task.problems.format(count=2000, seed=TRAINED),
    validation_problems=task.held_out,
    evaluate_problems=task.measured,
    evaluate_samples=4,
    sequence_length=task.sequence,
    rope_theta=ROPE_THETA,
    batch_size=PROMPTS * SAMPLES,
    samples=SAMPLES,
    steps=task.rl_steps,
    waves=1,
    entropy={"target": task.entropy, "gain": 0.5, "maximum": 0.3},
    evaluate_every=20,
    rollout={"slots": 256, "max_new_tokens": task.answer},
    optimizer={"schedule": "constant", "peak_lr": task.rl_lr, "final_lr": 0.0, "warmup_steps": 5, "weight_decay": 0.01},
  )
