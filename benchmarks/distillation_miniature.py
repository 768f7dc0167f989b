"""Strong-to-weak distillation in miniature, on-policy against GRPO from one student (report, Table 21).

  python benchmarks/distillation_miniature.py [--seeds=0,1,2] [--workdir=DIR] [--json=FILE]

For every seed a teacher is trained (cold start, GRPO), answers problems, and a student a third of its size learns those
answers off-policy. From that one checkpoint it goes on twice: by on-policy distillation, and by GRPO. Accuracy is
pass@1 over sampled answers to held-out problems; seconds are those of steps, evaluation left out. Floating-point
operations count what an answer costs to write (a forward pass over prompt and answer), to learn (three), and the
teacher's forward pass over it; padding and evaluation are left out.

The bar is the report's finding in small: GRPO's final accuracy less two points, for at most a fifth of its operations,
and a pass@k above GRPO's. What the teacher cost is shown apart, as in the report, with the number of students from
which it is repaid.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from experiment_runs import command, metrics, train

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.problems.cups import cups_problems
from qwen3_jax.reporting.compute import Point, forward_flops, learning_curve

POINTS, SHARE = 0.02, 1 / 5
EXPERIMENT = "miniature_distillation"


def run(seed: int, workdir: Path) -> dict[str, Any]:
  teacher, answers, student = workdir / "teacher", workdir / "answers", workdir / "student"
  train("miniature_reasoning.py:size=large", teacher, seed)
  written_by = f"--teacher={teacher}/stages/reasoning_rl"
  data = [
    "--problems=cups:1500:9",
    "--thinking_share=1.0",
    "--plain_share=1.0",
    "--max_length=48",
    "--max_new_tokens=20",
  ]
  data += ["--temperature=1.0", "--top_p=1.0", "--slots=256", "--dtype=float32"]
  command("qwen3_jax.distillation_data", written_by, *data, f"--seed={seed}", f"--output={answers}")
  where = f"teacher={teacher},answers={answers}"
  train(f"{EXPERIMENT}.py:{where},stage=off_policy", student, seed)
  curves = {}
  tokenizer = Tokenizer.from_pretrained(teacher / "tokenizer")
  prompts = [[{"role": "user", "content": problem.prompt}] for problem in cups_problems(20, 2)]
  prompt = float(np.mean([len(encode_conversation(tokenizer, p, add_generation_prompt=True).ids) for p in prompts]))
  for method in ("distill", "rl"):
    folder = workdir / method
    shutil.copytree(student, folder)
    train(f"{EXPERIMENT}.py:{where},method={method}", folder, seed)
    config = json.loads((folder / "config.json").read_text())["stages"]["on_policy"]
    length = config["sequence_length"]
    of_student = forward_flops(folder / "stages" / "on_policy", length)
    of_teacher = forward_flops(teacher / "stages" / "reasoning_rl", length) if method == "distill" else 0.0
    lines = metrics(folder, "on_policy")
    curves[method] = learning_curve(lines, config["batch_size"], prompt, of_student, of_teacher)
  return {"seed": seed, "curves": curves, "teacher_flops": teacher_cost(teacher, prompt)} | judged(curves)


def teacher_cost(workdir: Path, prompt: float) -> float:
  """Operations of all that made the teacher."""
  stages = json.loads((workdir / "config.json").read_text())["stages"]
  length = stages["reasoning_rl"]["sequence_length"]
  per_token = forward_flops(workdir / "stages" / "reasoning_rl", length)
  cold_start = 3 * per_token * stages["cold_start"]["tokens"]
  rows = stages["reasoning_rl"]["batch_size"]
  return cold_start + learning_curve(metrics(workdir, "reasoning_rl"), rows, prompt, per_token)[-1].flops


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
  print(f"\nseed {found['seed']}")
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
    f" {found['teacher_flops'] / saved:.1f}th student on"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--workdir", type=Path)
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  runs = []
  with tempfile.TemporaryDirectory() as temporary:
    for seed in map(int, arguments.seeds.split(",")):
      runs.append(run(seed, (arguments.workdir or Path(temporary)) / f"seed{seed}"))
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
