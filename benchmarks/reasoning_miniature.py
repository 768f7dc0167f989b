"""Cold start and GRPO in miniature: what they gain over seeds, and where the gain comes from.

  python benchmarks/reasoning_miniature.py [--task=cups] [--seeds=0,1,2] [--workdir=DIR] [--json=FILE]

Every seed is a run of experiments/miniature_reasoning.py as a user starts it. Answers are sampled at temperature 1 to
held-out problems that no stage trains on. Entropy is judged from half of the stage on, when it has come down from the
cold start's: its mean within a factor of two of the target, with no hand on it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from experiment_runs import metrics, train

GAIN_BAR = 0.25
START = (0.35, 0.60)
BAND = 2.0  # entropy over its target, at most, and the inverse
MINUTES = {"cups": 5.0}  # in all; of the families of reasoning-gym 15
OTHER_MINUTES = 15.0


def run(task: str, seed: int, workdir: Path) -> dict[str, Any]:
  """One run; its figures before and after GRPO."""
  started = time.monotonic()
  train(f"miniature_reasoning.py:task={task}", workdir, seed)
  seconds = time.monotonic() - started
  lines = metrics(workdir, "reasoning_rl")
  validation = [line for line in lines if "validation/pass@1" in line]
  steps = [line for line in lines if "rollout/rollout_entropy" in line]
  later = [line["rollout/rollout_entropy"] / line["entropy_target"] for line in steps[len(steps) // 2 :]]
  return {
    "seed": seed,
    "seconds": seconds,
    "before": _judged(validation[0]),
    "after": _judged(validation[-1]),
    "entropy": [line["rollout/rollout_entropy"] for line in steps],
    "entropy_over_target": float(np.mean(later)),
  }


def _judged(line: dict[str, Any]) -> dict[str, float]:
  return {name.removeprefix("validation/"): value for name, value in line.items() if name.startswith("validation/")}


def print_run(found: dict[str, Any]) -> None:
  before, after = found["before"], found["after"]
  k = next(name for name in before if name.startswith("pass@") and name != "pass@1" and "/" not in name)
  print(f"\nseed {found['seed']}: {found['seconds']:.0f} s, entropy over target {found['entropy_over_target']:.2f}")
  for name in ("pass@1", k, "thinking_tokens", "truncated", "rollout_entropy"):
    print(f"  {name:24s} {before[name]:8.3f} -> {after[name]:8.3f}")
  for name in sorted({*before, *after}, key=_bucket):
    if name.startswith("share/"):
      style = name.removeprefix("share/")
      values = [f"{of.get(name, 0):.2f} x {of.get('pass@1/' + style, 0):.2f}" for of in (before, after)]
      print(f"  {style:24s} {values[0]} -> {values[1]}   (share x pass@1)")


def _bucket(name: str) -> int:
  number = name.rpartition(" ")[2].partition("..")[0]
  return int(number) if number.isdigit() else -1


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--task", default="cups")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--workdir", type=Path)
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  folder = arguments.workdir or Path(tempfile.mkdtemp(prefix="reasoning-"))
  runs = []
  for seed in map(int, arguments.seeds.split(",")):
    runs.append(run(arguments.task, seed, folder / f"{arguments.task}-{seed}"))
    print_run(runs[-1])
  minutes = MINUTES.get(arguments.task, OTHER_MINUTES)
  checks = {
    f"cold start within {START[0]:.0%}..{START[1]:.0%}": [START[0] <= r["before"]["pass@1"] <= START[1] for r in runs],
    f"gain of {GAIN_BAR:.0%} or more": [r["after"]["pass@1"] - r["before"]["pass@1"] >= GAIN_BAR for r in runs],
    f"entropy within a factor {BAND:g}": [1 / BAND <= r["entropy_over_target"] <= BAND for r in runs],
    f"within {minutes:g} minutes": [r["seconds"] <= 60 * minutes for r in runs],
  }
  print()
  for name, held in checks.items():
    print(f"{name:32s} {sum(held)} of {len(held)} seeds")
  gains = [r["after"]["pass@1"] - r["before"]["pass@1"] for r in runs]
  spread = f" +- {np.std(gains, ddof=1):.3f}" if len(gains) > 1 else ""
  print(f"gain in pass@1: {np.mean(gains):.3f}{spread}")
  if arguments.json:
    arguments.json.write_text(json.dumps({"task": arguments.task, "runs": runs, "checks": checks}, indent=2) + "\n")
  sys.exit(0 if all(all(held) for held in checks.values()) else 1)


if __name__ == "__main__":
  main()
