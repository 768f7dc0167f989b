"""Strong-to-weak distillation in miniature, on-policy against GRPO from one student (report, Table 21).

  python benchmarks/distillation_miniature.py [--seeds=0,1,2] [--form=quick] [--workdir=DIR] [--json=FILE]

Every seed is a run of experiments/miniature.py, in DIR/seedN: a teacher (pre-training, cold start, GRPO, fusion), and a
smaller student that has read text and learns the teacher's answers off-policy. From that one checkpoint it goes on
twice: by on-policy distillation, and by GRPO. Runs that benchmarks/demo.py left in DIR are not repeated.

Accuracy is pass@1 and pass@k of sampled answers, thinking, to held-out problems; seconds are those of steps, evaluation
left out. Floating-point operations count what an answer of either mode costs to write (a forward pass over prompt and
answer), to learn (three), and the teacher's forward pass over it; padding and evaluation are left out.

The bar is the report's finding in small: GRPO's final accuracy less two points, for at most a fifth of its operations,
and a pass@k not below GRPO's. What the teacher cost is shown apart, as in the report, with the number of students from
which it is repaid.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from experiment_runs import DEMO_FORMS, DEMO_LOG_EVERY, demo, metrics, train
from ml_collections import ConfigDict

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.reporting.compute import Point, forward_flops, learning_curve
from qwen3_jax.stages.cost import stage_flops
from qwen3_jax.workdir import Workdir, read_json

POINTS, SHARE = 0.02, 1 / 5
MODE = "think"  # not thinking, the teacher itself is no better than the student
TEACHER = "fusion"  # the last of the teacher's stages
STAGES = {"distill": "student_on_policy", "rl": "student_rl"}


def run(seed: int, form: str, workdir: Path) -> dict[str, Any]:
  train(demo(form), workdir, seed, DEMO_LOG_EVERY)
  return {"seed": seed, **measured(Workdir(workdir))}


def measured(workdir: Workdir) -> dict[str, Any]:
  """What a run shows."""
  config = ConfigDict(read_json(workdir.config))
  prompt = prompt_tokens(workdir, config)
  curves = {method: curve(workdir, config, stage, prompt) for method, stage in STAGES.items()}
  return {"curves": curves, "teacher_flops": teacher_cost(config), **judged(curves)}


def curve(workdir: Workdir, config: ConfigDict, stage: str, prompt: float) -> list[Point]:
  """A student's evaluations in MODE."""
  settings = config.stages[stage]
  length = settings.sequence_length
  of_teacher = forward_flops(workdir.stage(TEACHER), length) if settings.kind == "distill" else 0.0
  of_student = forward_flops(workdir.stage(stage), length)
  lines = [_in_mode(line) for line in metrics(workdir.path, stage)]
  return learning_curve(lines, settings.batch_size, prompt, of_student, of_teacher)


def _in_mode(line: dict[str, Any]) -> dict[str, Any]:
  """A line of metrics with accuracies of MODE alone."""
  suffix = f"/{MODE}"
  of_mode = {name.removesuffix(suffix): value for name, value in line.items() if name.endswith(suffix)}
  return {name: value for name, value in line.items() if not name.startswith("validation/pass@")} | of_mode


def prompt_tokens(workdir: Workdir, config: ConfigDict) -> float:
  """Mean length of a prompt."""
  tokenizer = Tokenizer.from_pretrained(workdir.tokenizer)
  problems = open_problems(config.stages[STAGES["rl"]].validation_problems)
  prompts = [[{"role": "user", "content": problem.prompt}] for problem in problems]
  return float(np.mean([len(encode_conversation(tokenizer, p, add_generation_prompt=True).ids) for p in prompts]))


def teacher_cost(config: ConfigDict) -> float:
  """Operations of all stages that made the teacher."""
  stages = config.pipeline[: config.pipeline.index(TEACHER) + 1]
  return sum(stage_flops(config, name) for name in stages)


def judged(curves: dict[str, list[Point]]) -> dict[str, Any]:
  """The first evaluation at which distillation is within two points of where GRPO ends."""
  distilled, reinforced = curves["distill"], curves["rl"]
  target = reinforced[-1].pass1 - POINTS
  reached = next((point for point in distilled if point.pass1 >= target), None)
  ratio = lambda of: getattr(reached, of) / getattr(reinforced[-1], of) if reached else float("nan")
  return {
    "target": target,
    "flops_ratio": ratio("flops"),
    "samples_ratio": ratio("samples"),
    "seconds_ratio": ratio("seconds"),
    "passk": [distilled[-1].passk, reinforced[-1].passk],
    "holds": reached is not None and ratio("flops") <= SHARE and distilled[-1].passk >= reinforced[-1].passk,
  }


def print_run(found: dict[str, Any]) -> None:
  print(f"\nseed {found['seed']}, {MODE}")
  print("  method   step  seconds  samples      FLOPs   pass@1  pass@k")
  for method, points in found["curves"].items():
    for p in points:
      print(
        f"  {method:7s} {p.step:5d} {p.seconds:8.1f} {p.samples:8.0f} {p.flops:10.2e} {p.pass1:8.3f} {p.passk:7.3f}"
      )
  saved = found["curves"]["rl"][-1].flops * (1 - found["flops_ratio"])
  print(
    f"  GRPO's end less {POINTS:.0%}, {found['target']:.3f}: for {found['flops_ratio']:.2f} of its operations,"
    f" {found['samples_ratio']:.2f} of its samples, {found['seconds_ratio']:.2f} of its seconds"
  )
  print(
    f"  the teacher took {found['teacher_flops']:.2e} operations: repaid from the"
    f" {found['teacher_flops'] / saved:.1f}th student on",
    flush=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--form", default="", choices=DEMO_FORMS)
  parser.add_argument("--workdir", type=Path)
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  runs = []
  with tempfile.TemporaryDirectory() as temporary:
    for seed in map(int, arguments.seeds.split(",")):
      runs.append(run(seed, arguments.form, (arguments.workdir or Path(temporary)) / f"seed{seed}"))
      print_run(runs[-1])
  rows = [
    {
      "name": f"operations of distillation to GRPO's accuracy less {POINTS:.0%}, seed {found['seed']}",
      "unit": "of GRPO's",
      "ours": found["flops_ratio"],
      "peer": 1.0,
      "peer_name": "GRPO",
      "ratio": found["flops_ratio"],
      "bar": SHARE,
      "holds": found["holds"],
    }
    for found in runs
  ]
  if arguments.json:
    arguments.json.write_text(json.dumps({"rows": rows, "runs": runs}, indent=2) + "\n")
  sys.exit(not all(row["holds"] for row in rows))


if __name__ == "__main__":
  main()
