"""Reasoning on a laptop: a cold start from written traces, then GRPO on fresh problems.

`task=cups` (the default), `chain_sum` or `letter_counting`, the last two of them families of reasoning-gym. The cold
start reads few traces, most of which are hasty: the model can think, but often does not. GRPO finds that thinking pays.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import recipes
from qwen3_jax.config import base_config, corpus, rl_stage, sft_stage
from qwen3_jax.config_loading import parse_arg

MODEL = {
  "hidden_size": 96,
  "intermediate_size": 288,
  "num_layers": 4,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 24,
  "tie_word_embeddings": True,
  "initializer_range": 0.08,  # so narrow a model would lie on a plateau for long with 0.02
}


class Task(NamedTuple):
  problems: str  # spec of the problems, {count} and {seed} to be filled in
  vocabulary: int
  sequence: int  # tokens of prompt and answer, at most
  answer: int  # tokens of an answer, at most
  hasty: float = 0.6  # share of the cold start's traces
  traces: int = 4000
  sft_steps: int = 300
  rl_steps: int = 40


TASKS = {
  "cups": Task("cups:{count}:{seed}", vocabulary=320, sequence=48, answer=20),
  "chain_sum": Task(
    'reasoning-gym:chain_sum:{count}:{seed}:{{"chain_sum": {{"max_digits": 1, "min_terms": 4, "max_terms": 7}}}}',
    vocabulary=340,
    sequence=96,
    answer=48,
  ),
  "letter_counting": Task(
    'reasoning-gym:letter_counting:{count}:{seed}:{{"letter_counting": {{"min_words": 3, "max_words": 6}}}}',
    vocabulary=512,
    sequence=128,
    answer=64,
  ),
}
ROPE_THETA = 1e4  # sequences are short
SFT_ROWS = 32  # of two or more conversations each
PROMPTS, SAMPLES = 32, 8


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, task=tuple(TASKS))
  task = TASKS[arguments.task]
  config = base_config()
  config.name = f"miniature-reasoning-{arguments.task}"
  config.model.update(MODEL)
  config.model.update(name=config.name, vocab_size=task.vocabulary, unroll_layers=True)
  config.tokenizer.train_vocab_size = task.vocabulary
  config.cpu_devices = 2
  config.mesh.update(data=-1, fsdp=1)
  problems = lambda count, seed: task.problems.format(count=count, seed=seed)
  config.data.corpora.traces = corpus(f"traces:{task.hasty}:{problems(task.traces, 1)}", validation_fraction=0.04)
  config.pipeline = ("cold_start", "reasoning_rl")

  tokens = SFT_ROWS * 2 * task.sequence
  config.stages.cold_start = sft_stage(
    sequence_length=2 * task.sequence,
    rope_theta=ROPE_THETA,
    batch_size=SFT_ROWS,
    tokens=task.sft_steps * tokens,
    mixture={"traces": 1.0},
    evaluate_every=100,
    evaluate_batches=1,
    optimizer={"schedule": "cosine", "peak_lr": 3e-3, "final_lr": 3e-4, "warmup_steps": 10, "weight_decay": 0.01},
  )
  config.stages.reasoning_rl = rl_stage(
    problems=problems(2000, 2),
    validation_problems=problems(128, 3),
    evaluate_problems=128,
    evaluate_samples=4,
    sequence_length=task.sequence,
    rope_theta=ROPE_THETA,
    batch_size=PROMPTS * SAMPLES,
    samples=SAMPLES,
    steps=task.rl_steps,
    waves=1,
    entropy={"target": 0.04, "gain": 0.15, "maximum": 0.15},
    evaluate_every=20,
    rollout={"slots": 256, "max_new_tokens": task.answer},
    optimizer={"schedule": "constant", "peak_lr": 5e-4, "final_lr": 0.0, "warmup_steps": 5, "weight_decay": 0.01},
  )
  config.checkpoint.every = 100
  return recipes.finish(config, arguments)
