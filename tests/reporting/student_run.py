"""A run with students and teachers, as the demo leaves it: numbers that tests know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from qwen3_jax.config import (
  base_config,
  corpus,
  distill_stage,
  evaluation,
  pretrain_stage,
  rl_stage,
  sft_stage,
  teacher,
  written_answers,
)
from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.huggingface import write_config
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.workdir import Workdir, write_json

SIZES = {"vocab_size": 64, "num_layers": 2, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
TEACHER = ModelConfig(hidden_size=32, **SIZES)
STUDENT = ModelConfig(hidden_size=16, **SIZES)
LENGTH, ROWS = 32, 8
RESPONSE = {"distilled": 5.0, "reinforced": 7.0}  # tokens of an answer
SCORES = {"distilled": [(0, 0.25), (2, 0.5), (6, 0.75)], "reinforced": [(0, 0.25), (6, 0.5)]}
STEP_SECONDS = {"distilled": 0.5, "reinforced": 0.25}


def student_config() -> dict:
  """first -> reasoning -> fused; off_policy learns what fused wrote; distilled, whose teacher it is, and reinforced."""
  config = base_config()
  config.name = "small"
  config.models.student = base_config().model
  config.data.written.answers = written_answers("fused")
  config.data.corpora.answers = corpus("written:answers")
  config.data.corpora.text = corpus("python:")
  shape = {"sequence_length": LENGTH, "batch_size": ROWS}
  config.stages.first = pretrain_stage(tokens=1024, mixture={"text": 1.0}, **shape)
  config.stages.reasoning = rl_stage(steps=4, **shape)
  config.stages.fused = sft_stage(tokens=1024, mixture={"text": 1.0}, **shape)
  config.stages.off_policy = sft_stage(tokens=1024, mixture={"answers": 1.0}, model="student", **shape)
  config.stages.distilled = distill_stage(steps=6, model="student", evaluate_problems=50, **shape)
  config.stages.distilled.teachers.large = teacher("stage:fused")
  config.stages.reinforced = rl_stage(steps=6, model="student", after="off_policy", evaluate_problems=50, **shape)
  config.pipeline = ("first", "reasoning", "fused", "off_policy", "distilled", "reinforced")
  config.evaluations.late = evaluation("fused", ("modes:cups:12", "think_follow:cups:12"))
  config.evaluations.early = evaluation("reasoning", ("modes:cups:12",))
  return config.to_dict()


def write_student_run(workdir: Workdir, with_tokenizer: bool = True) -> None:
  write_json(workdir.config, student_config())
  for name in student_config()["pipeline"]:
    folder = workdir.stage(name)
    folder.mkdir(parents=True)
    model = STUDENT if name in ("off_policy", "distilled", "reinforced") else TEACHER
    write_config(folder, model, np.dtype("float32"), {})
    lines = [{"step": 0, "time": 100.0}, {"step": 4, "time": 160.0, "loss": 2.0, "step_seconds": 1.0}]
    if name in SCORES:
      lines = _rollout_lines(name)
    if name in ("first", "fused"):
      lines.append({"step": 4, "time": 160.0, "validation/loss": 1.5, "validation/text/loss": 1.5})
    if name == "reasoning":
      lines[0] |= {"validation/pass@1": 0.25}
      lines.append({"step": 4, "time": 161.0, "validation/pass@1": 0.5, "rollout/number": 3.0})
    workdir.metrics(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    workdir.mark_done(name, 4)
  for name in SCORES:
    samples = [{"step": step, "prompt": "a b", "text": f"{name} at {step}"} for step, _ in SCORES[name]]
    workdir.samples(name).write_text("".join(json.dumps(sample) + "\n" for sample in samples))
  if with_tokenizer:
    train_sentencepiece([Path(__file__).read_text()], workdir.tokenizer / "tokenizer.model", 350)


def _rollout_lines(name: str) -> list[dict]:
  """Logged every third step, judged at steps of its own."""
  modes = lambda score: {"think": score + 0.0625, "no_think": score - 0.0625}
  scores = [
    {"step": step, "validation/pass@1": score, "validation/pass@4": score + 0.125}
    | {f"validation/pass@1/{mode}": value for mode, value in modes(score).items()}
    for step, score in SCORES[name]
  ]
  logged = [
    {
      "step": step,
      "loss": 1.0,
      "step_seconds": STEP_SECONDS[name],
      "rollout/number": step - 1.0,
      "rollout/response_tokens": RESPONSE[name],
    }
    for step in (3, 6)
  ]
  return [
    {"time": 100.0 + 10 * line["step"]} | line for line in sorted([*logged, *scores], key=lambda line: line["step"])
  ]
